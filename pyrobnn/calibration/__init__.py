"""Calibration: does stated confidence match observed accuracy?"""

from typing import TYPE_CHECKING, Any

from pyrobnn.calibration.reliability import (
    ReliabilityCurve,
    adaptive_calibration_error,
    expected_calibration_error,
    reliability_curve,
)

if TYPE_CHECKING:
    from pyrobnn.calibration.streaming import AdaptiveCalibrationError, ExpectedCalibrationError

__all__ = [
    "AdaptiveCalibrationError",
    "ExpectedCalibrationError",
    "ReliabilityCurve",
    "adaptive_calibration_error",
    "expected_calibration_error",
    "reliability_curve",
]


def __getattr__(name: str) -> Any:
    """Loads the streaming metrics, and torchmetrics with them, only when they are used."""
    if name in ("AdaptiveCalibrationError", "ExpectedCalibrationError"):
        from pyrobnn.calibration import streaming

        return getattr(streaming, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
