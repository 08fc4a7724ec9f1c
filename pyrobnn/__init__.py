"""Bayesian neural networks on Pyro: any network becomes a Pyro model, every posterior is a guide."""

from pyrobnn import (
    calibration,
    conformal,
    decisions,
    detection,
    diagnostics,
    distillation,
    estimators,
    function_space,
    guides,
    influence,
    lora,
    metrics,
    objectives,
    robustness,
    sampling,
    structure,
    training,
)
from pyrobnn._version import __version__
from pyrobnn.assessment import report
from pyrobnn.checkpoint import load, save
from pyrobnn.core import schedules
from pyrobnn.core.batches import Batch
from pyrobnn.core.executors import SerialExecutor, WorkerLostError
from pyrobnn.core.processes import independent_processes
from pyrobnn.core.ranks import RankFailedError, RankLostError
from pyrobnn.diagnostics import check, sbc, to_arviz
from pyrobnn.distillation import distill
from pyrobnn.exporting import Exported, ExportError, export
from pyrobnn.model import likelihoods, priors
from pyrobnn.model.bayesianize import BayesianModule, bayesianize
from pyrobnn.model.standardization import Standardizer
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import Prediction, Predictive, predict, predict_batches, predict_joint, regression_report
from pyrobnn.reporting import plots
from pyrobnn.reporting.description import describe
from pyrobnn.sampling import sample
from pyrobnn.training import History, fit
from pyrobnn.training.finetuning import finetune
from pyrobnn.training.prior_tuning import tune_prior
from pyrobnn.training.running_statistics import recalibrate_batch_norm

__all__ = [
    "Batch",
    "BayesianModule",
    "ExportError",
    "Exported",
    "History",
    "Prediction",
    "Predictive",
    "RankFailedError",
    "RankLostError",
    "SerialExecutor",
    "Standardizer",
    "SupervisedModel",
    "WorkerLostError",
    "__version__",
    "bayesianize",
    "calibration",
    "check",
    "conformal",
    "decisions",
    "describe",
    "detection",
    "diagnostics",
    "distill",
    "distillation",
    "estimators",
    "export",
    "finetune",
    "fit",
    "function_space",
    "guides",
    "independent_processes",
    "influence",
    "likelihoods",
    "load",
    "lora",
    "metrics",
    "objectives",
    "plots",
    "predict",
    "predict_batches",
    "predict_joint",
    "priors",
    "recalibrate_batch_norm",
    "regression_report",
    "report",
    "robustness",
    "sample",
    "sampling",
    "save",
    "sbc",
    "schedules",
    "structure",
    "to_arviz",
    "training",
    "tune_prior",
]
