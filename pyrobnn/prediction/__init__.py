"""Predictions: pinned draws, looped or vmapped under a byte budget, reduced on the fly."""

from pyrobnn.prediction.draws import PinnedDraws
from pyrobnn.prediction.linearized import GaussianPrediction, predict_linearized
from pyrobnn.prediction.predict import predict, predict_batches
from pyrobnn.prediction.predictive import Predictive
from pyrobnn.prediction.result import Prediction

__all__ = [
    "GaussianPrediction",
    "PinnedDraws",
    "Prediction",
    "Predictive",
    "predict",
    "predict_batches",
    "predict_linearized",
]
