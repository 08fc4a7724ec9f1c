"""The command line: ``pyrobnn demo`` and ``pyrobnn --version``.

A mistake in the arguments gives one line on the standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import matplotlib
import torch

from pyrobnn import demo
from pyrobnn._version import __version__

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Those of the process if None.

    Returns:
        The exit code.

    Raises:
        SystemExit: With code 2 if the arguments are wrong, with 0 after ``--help`` and ``--version``.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return _demo(options)
    except OSError as error:
        print(f"pyrobnn demo: --output: {error.filename or options.output}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyrobnn demo: interrupted", file=sys.stderr)
        return 130


def _demo(options: argparse.Namespace) -> int:
    matplotlib.use("agg")  # figures go to files, whatever screen there is
    torch.set_num_threads(1)  # the network is so small that threads would only wait for each other
    metrics = demo.run(options.output, options.epochs, options.seed, progress=sys.stderr.isatty())
    if options.json:
        print(json.dumps(metrics, indent=2))
        return 0
    print(
        f"Digits 0-7 are known ({metrics['num_train']} to learn from, {metrics['num_test']} to test on), 8 and 9 are "
        f"unknown ({metrics['num_unknown']}); {metrics['epochs']} epochs, seed {metrics['seed']}.\n"
    )
    print(demo.format_table(metrics["methods"]))
    print("\nAUROC: unknown against known digits, by mutual information (MI) or entropy (H). Step: time of a training")
    print("step, as a multiple of the plain network's. Written:")
    for name in demo.FILES:
        print(f"  {options.output / name}")
    return 0


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(prog="pyrobnn", description="Bayesian neural networks on Pyro.")
    parser.add_argument("--version", action="version", version=f"pyrobnn {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands")
    text = "Fits posteriors of a small network to real handwritten digits (0-7) and evaluates them on 8 and 9."
    command = commands.add_parser(
        "demo",
        help="train on real digits, compare posteriors, write a report",
        description=text,
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        help=f"folder for {', '.join(demo.FILES)} (default: %(default)s)",
    )
    command.add_argument(
        "--epochs", type=_epochs, default=50, help="passes over the training data (default: %(default)s)"
    )
    command.add_argument(
        "--seed", type=_seed, default=0, help="fixes everything but the timings (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print the metrics as JSON, and nothing else")
    return parser


def _epochs(text: str) -> int:
    if (epochs := _whole_number(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return epochs


def _seed(text: str) -> int:
    if not 0 <= (seed := _whole_number(text)) < 2**32:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2**32 - 1, got {text}")
    return seed


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
