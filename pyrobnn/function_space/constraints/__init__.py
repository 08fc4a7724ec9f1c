"""Constraints on the functions of a posterior, as terms of objectives (regularized Bayesian inference)."""

from pyrobnn.function_space.constraints.base import Constraint
from pyrobnn.function_space.constraints.bounds import Bounds
from pyrobnn.function_space.constraints.derivative_sign import DerivativeSign, Monotone
from pyrobnn.function_space.constraints.expert_agreement import ExpertAgreement
from pyrobnn.function_space.constraints.fairness_gap import FairnessGap
from pyrobnn.function_space.constraints.invariance import Invariance
from pyrobnn.function_space.constraints.uncertainty_off_data import UncertaintyOffData
from pyrobnn.function_space.constraints.violations import Violations, violations

__all__ = [
    "Bounds",
    "Constraint",
    "DerivativeSign",
    "ExpertAgreement",
    "FairnessGap",
    "Invariance",
    "Monotone",
    "UncertaintyOffData",
    "Violations",
    "violations",
]
