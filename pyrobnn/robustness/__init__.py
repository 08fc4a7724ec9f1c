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
from pyrobnn.robustness.denoiser import DenoisedModel, Denoiser, DenoiserReport, denoiser_report, fit_denoiser

__all__ = [
    "FGSM",
    "L2",
    "PGD",
    "Attack",
    "AttackResult",
    "Ball",
    "ClassLoss",
    "CrossEntropy",
    "DenoisedModel",
    "Denoiser",
    "DenoiserReport",
    "LInf",
    "Loss",
    "Margin",
    "Problem",
    "QueryBudgetWarning",
    "denoiser_report",
    "fit_denoiser",
    "training",
]
