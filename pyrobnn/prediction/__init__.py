"""Predictions: a predictor makes draws, and the reduction of the likelihood turns them into a prediction."""

from pyrobnn.model.likelihoods.gaussian_prediction import GaussianPrediction
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction
from pyrobnn.model.likelihoods.reductions import ClassReduction, MomentReduction, Reduction
from pyrobnn.prediction.draws import PinnedDraws
from pyrobnn.prediction.gaussian_process import GaussianProcessPredictor
from pyrobnn.prediction.joint import predict_joint
from pyrobnn.prediction.joint_prediction import JointPrediction
from pyrobnn.prediction.linearized import LinearizedPredictor, predict_linearized
from pyrobnn.prediction.predict import predict, predict_batches
from pyrobnn.prediction.predictive import Predictive
from pyrobnn.prediction.predictor import Predictor, PredictorOptions, WeightsPredictor
from pyrobnn.prediction.regression_report import regression_report, regression_scores

__all__ = [
    "ClassPrediction",
    "ClassReduction",
    "GaussianPrediction",
    "GaussianProcessPredictor",
    "JointPrediction",
    "LinearizedPredictor",
    "MomentPrediction",
    "MomentReduction",
    "PinnedDraws",
    "Prediction",
    "Predictive",
    "Predictor",
    "PredictorOptions",
    "Reduction",
    "WeightsPredictor",
    "predict",
    "predict_batches",
    "predict_joint",
    "predict_linearized",
    "regression_report",
    "regression_scores",
]
