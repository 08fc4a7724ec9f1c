"""Bayesian neural networks on Pyro: any network becomes a Pyro model, every posterior is a guide."""

from pyrobnn import (
    calibration,
    decisions,
    detection,
    diagnostics,
    elbo,
    estimators,
    guides,
    likelihoods,
    plots,
    priors,
    robustness,
    sampling,
    schedules,
    structure,
    uncertainty,
)
from pyrobnn._version import __version__
from pyrobnn.batches import Batch
from pyrobnn.bayesianize import BayesianModule, bayesianize
from pyrobnn.checkpoint import load, save
from pyrobnn.description import describe
from pyrobnn.diagnostics import check, sbc, to_arviz
from pyrobnn.finetuning import finetune
from pyrobnn.prediction import Prediction, Predictive, predict, predict_batches
from pyrobnn.running_statistics import recalibrate_batch_norm
from pyrobnn.sampling import distill, sample
from pyrobnn.supervised import SupervisedModel
from pyrobnn.training import History, fit

__all__ = [
    "Batch",
    "BayesianModule",
    "History",
    "Prediction",
    "Predictive",
    "SupervisedModel",
    "__version__",
    "bayesianize",
    "calibration",
    "check",
    "decisions",
    "describe",
    "detection",
    "diagnostics",
    "distill",
    "elbo",
    "estimators",
    "finetune",
    "fit",
    "guides",
    "likelihoods",
    "load",
    "plots",
    "predict",
    "predict_batches",
    "priors",
    "recalibrate_batch_norm",
    "robustness",
    "sample",
    "sampling",
    "save",
    "sbc",
    "schedules",
    "structure",
    "to_arviz",
    "uncertainty",
]
