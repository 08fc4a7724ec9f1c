"""Scores, uncertainty, calibration, out-of-distribution detection, failure prediction: tensors in, tensors out."""

from typing import TYPE_CHECKING, Any

from pyrobnn.metrics.calibration import (
    ReliabilityCurve,
    adaptive_calibration_error,
    expected_calibration_error,
    reliability_curve,
)
from pyrobnn.metrics.crps import (
    crps,
    gaussian_crps,
    gaussian_mixture_crps,
    laplace_mixture_crps,
    log_normal_mixture_crps,
)
from pyrobnn.metrics.detection import aupr, auroc, detection_report, fpr_at_tpr
from pyrobnn.metrics.detection_intervals import detection_intervals
from pyrobnn.metrics.dirichlet import DirichletMeasures, dirichlet_measures
from pyrobnn.metrics.energy import energy_score
from pyrobnn.metrics.failure import failure_report
from pyrobnn.metrics.intervals import cwce, epiw, interval_coverage, interval_score, interval_width, r_cwce
from pyrobnn.metrics.measures import (
    VarianceDecomposition,
    entropy,
    expected_entropy,
    least_confidence,
    mutual_information,
    predictive_entropy,
    probability_variance,
    variance_decomposition,
    variation_ratio,
)
from pyrobnn.metrics.pit import PitHistogram, QuantileCalibration, pit_histogram, quantile_calibration
from pyrobnn.metrics.regression import pinball, r2, rmse
from pyrobnn.metrics.regression_report import RegressionReport
from pyrobnn.metrics.scores import accuracy, brier, nll
from pyrobnn.metrics.selective import RiskCoverage, augrc, aurc, risk_coverage

if TYPE_CHECKING:
    from pyrobnn.metrics.streaming import AdaptiveCalibrationError, ExpectedCalibrationError
    from pyrobnn.metrics.streaming_regression import RegressionScores
from pyrobnn.metrics.wilson import wilson_interval

__all__ = [
    "AdaptiveCalibrationError",
    "DirichletMeasures",
    "ExpectedCalibrationError",
    "PitHistogram",
    "QuantileCalibration",
    "RegressionReport",
    "RegressionScores",
    "ReliabilityCurve",
    "RiskCoverage",
    "VarianceDecomposition",
    "accuracy",
    "adaptive_calibration_error",
    "augrc",
    "aupr",
    "aurc",
    "auroc",
    "brier",
    "crps",
    "cwce",
    "detection_intervals",
    "detection_report",
    "dirichlet_measures",
    "energy_score",
    "entropy",
    "epiw",
    "expected_calibration_error",
    "expected_entropy",
    "failure_report",
    "fpr_at_tpr",
    "gaussian_crps",
    "gaussian_mixture_crps",
    "interval_coverage",
    "interval_score",
    "interval_width",
    "laplace_mixture_crps",
    "least_confidence",
    "log_normal_mixture_crps",
    "mutual_information",
    "nll",
    "pinball",
    "pit_histogram",
    "predictive_entropy",
    "probability_variance",
    "quantile_calibration",
    "r2",
    "r_cwce",
    "reliability_curve",
    "risk_coverage",
    "rmse",
    "variance_decomposition",
    "variation_ratio",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    """Loads the streaming metrics, and torchmetrics with them, only when they are used."""
    if name in ("AdaptiveCalibrationError", "ExpectedCalibrationError"):
        from pyrobnn.metrics import streaming

        return getattr(streaming, name)
    if name == "RegressionScores":
        from pyrobnn.metrics.streaming_regression import RegressionScores

        return RegressionScores
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
