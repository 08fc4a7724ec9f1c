"""Attacks on a posterior predictive, one a file."""

from pyrobnn.robustness.attacks.balls import L2, Ball, LInf
from pyrobnn.robustness.attacks.base import Attack, AttackResult, QueryBudgetWarning
from pyrobnn.robustness.attacks.fgsm import FGSM
from pyrobnn.robustness.attacks.losses import ClassLoss, CrossEntropy, Loss, Margin
from pyrobnn.robustness.attacks.pgd import PGD
from pyrobnn.robustness.attacks.problem import Problem

__all__ = [
    "FGSM",
    "L2",
    "PGD",
    "Attack",
    "AttackResult",
    "Ball",
    "ClassLoss",
    "CrossEntropy",
    "LInf",
    "Loss",
    "Margin",
    "Problem",
    "QueryBudgetWarning",
]
