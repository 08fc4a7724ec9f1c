"""Conformal prediction: sets and intervals with finite-sample coverage, from any prediction and a held-out set."""

from pyrobnn.conformal.adaptive import AdaptiveConformalRegressor
from pyrobnn.conformal.class_scores import APS, LAC, RAPS, SAPS, ClassScore
from pyrobnn.conformal.classes import ConformalClassifier
from pyrobnn.conformal.coverage import CoverageReport, CoverageRow, coverage_of_intervals, coverage_of_sets
from pyrobnn.conformal.cross import CrossConformalClassifier, CrossConformalRegressor
from pyrobnn.conformal.density_score import DensityScore
from pyrobnn.conformal.real import ConformalRegressor
from pyrobnn.conformal.real_scores import AbsoluteResidual, NormalizedResidual, PITScore, QuantileResidual, RealScore
from pyrobnn.conformal.risk import RiskControl, missed_labels

__all__ = [
    "APS",
    "LAC",
    "RAPS",
    "SAPS",
    "AbsoluteResidual",
    "AdaptiveConformalRegressor",
    "ClassScore",
    "ConformalClassifier",
    "ConformalRegressor",
    "CoverageReport",
    "CoverageRow",
    "CrossConformalClassifier",
    "CrossConformalRegressor",
    "DensityScore",
    "NormalizedResidual",
    "PITScore",
    "QuantileResidual",
    "RealScore",
    "RiskControl",
    "coverage_of_intervals",
    "coverage_of_sets",
    "missed_labels",
]
