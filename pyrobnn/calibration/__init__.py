"""Calibration: does stated confidence match observed accuracy?"""

from pyrobnn.calibration.reliability import (
    AdaptiveCalibrationError,
    ExpectedCalibrationError,
    ReliabilityCurve,
    adaptive_calibration_error,
    expected_calibration_error,
    reliability_curve,
)

__all__ = [
    "AdaptiveCalibrationError",
    "ExpectedCalibrationError",
    "ReliabilityCurve",
    "adaptive_calibration_error",
    "expected_calibration_error",
    "reliability_curve",
]
