"""Scores, uncertainty, calibration, out-of-distribution detection, selective prediction: tensors in, tensors out."""

from typing import TYPE_CHECKING, Any

from pyrobnn.metrics.calibration import (
    ReliabilityCurve,
    adaptive_calibration_error,
    expected_calibration_error,
    reliability_curve,
)
from pyrobnn.metrics.detection import aupr, auroc, detection_report, fpr_at_tpr
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
from pyrobnn.metrics.scores import (
    accuracy,
    brier,
    crps,
    gaussian_crps,
    interval_coverage,
    interval_width,
    nll,
    pinball,
    rmse,
)
from pyrobnn.metrics.selective import RiskCoverage, aurc, risk_coverage

if TYPE_CHECKING:
    from pyrobnn.metrics.streaming import AdaptiveCalibrationError, ExpectedCalibrationError

__all__ = [
    "AdaptiveCalibrationError",
    "ExpectedCalibrationError",
    "ReliabilityCurve",
    "RiskCoverage",
    "VarianceDecomposition",
    "accuracy",
    "adaptive_calibration_error",
    "aupr",
    "aurc",
    "auroc",
    "brier",
    "crps",
    "detection_report",
    "entropy",
    "expected_calibration_error",
    "expected_entropy",
    "fpr_at_tpr",
    "gaussian_crps",
    "interval_coverage",
    "interval_width",
    "least_confidence",
    "mutual_information",
    "nll",
    "pinball",
    "predictive_entropy",
    "probability_variance",
    "reliability_curve",
    "risk_coverage",
    "rmse",
    "variance_decomposition",
    "variation_ratio",
]


def __getattr__(name: str) -> Any:
    """Loads the streaming metrics, and torchmetrics with them, only when they are used."""
    if name in ("AdaptiveCalibrationError", "ExpectedCalibrationError"):
        from pyrobnn.metrics import streaming

        return getattr(streaming, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
