"""Worst-case inputs of a posterior predictive, and training against them."""

from pyrobnn.robustness import training
from pyrobnn.robustness.attacks import (
    FGSM,
    L2,
    PGD,
    Attack,
    AttackResult,
    Ball,
    ClassLoss,
    CrossEntropy,
    LInf,
    Loss,
    Margin,
    Problem,
    QueryBudgetWarning,
)

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
    "training",
]
