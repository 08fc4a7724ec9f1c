"""Estimators of scikit-learn: Bayesian networks for tables, with ``fit``, ``predict`` and uncertainty."""

from pyrobnn.sklearn.base import BayesianEstimator
from pyrobnn.sklearn.classifier import BayesianClassifier
from pyrobnn.sklearn.posteriors import POSTERIORS
from pyrobnn.sklearn.regressor import BayesianRegressor

__all__ = ["POSTERIORS", "BayesianClassifier", "BayesianEstimator", "BayesianRegressor"]
