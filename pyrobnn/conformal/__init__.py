"""Conformal prediction: sets and intervals with finite-sample coverage, from any prediction and a held-out set."""

from pyrobnn.conformal.class_scores import APS, LAC, RAPS, SAPS, ClassScore
from pyrobnn.conformal.classes import ConformalClassifier
from pyrobnn.conformal.real import ConformalRegressor
from pyrobnn.conformal.real_scores import AbsoluteResidual, NormalizedResidual, QuantileResidual, RealScore

__all__ = [
    "APS",
    "LAC",
    "RAPS",
    "SAPS",
    "AbsoluteResidual",
    "ClassScore",
    "ConformalClassifier",
    "ConformalRegressor",
    "NormalizedResidual",
    "QuantileResidual",
    "RealScore",
]
