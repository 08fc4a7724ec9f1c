"""The demo: posteriors of a small network on real handwritten digits, two of which it has never seen.

``pyrobnn demo`` on the command line, or :func:`run`.
"""

from pyrobnn.demo.digits import Digits, load_digits, make_model, network
from pyrobnn.demo.methods import METHODS, TIMINGS, Method, Result, evaluate, step_ratios
from pyrobnn.demo.run import FILES, format_table, run

__all__ = [
    "FILES",
    "METHODS",
    "TIMINGS",
    "Digits",
    "Method",
    "Result",
    "evaluate",
    "format_table",
    "load_digits",
    "make_model",
    "network",
    "run",
    "step_ratios",
]
