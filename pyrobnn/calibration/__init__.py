"""Calibration after training: fitted to held-out predictions, then a function from prediction to prediction."""

from pyrobnn.calibration.base import ClassCalibrator
from pyrobnn.calibration.dirichlet import DirichletScaling
from pyrobnn.calibration.histogram import HistogramBinning
from pyrobnn.calibration.isotonic import IsotonicCalibration
from pyrobnn.calibration.matrix import MatrixScaling
from pyrobnn.calibration.quantile import QuantileRecalibration, RecalibratedPrediction
from pyrobnn.calibration.temperature import TemperatureScaling
from pyrobnn.calibration.vector import VectorScaling

__all__ = [
    "ClassCalibrator",
    "DirichletScaling",
    "HistogramBinning",
    "IsotonicCalibration",
    "MatrixScaling",
    "QuantileRecalibration",
    "RecalibratedPrediction",
    "TemperatureScaling",
    "VectorScaling",
]
