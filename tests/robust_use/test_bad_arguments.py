"""Any bad value of any argument: it works, or one error of the library's own says which argument is wrong.

Each public call is made as it should be, but for one argument, which has each of the bad values in turn.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn import (
    calibration,
    conformal,
    decisions,
    detection,
    diagnostics,
    guides,
    influence,
    metrics,
    objectives,
    plots,
    priors,
    robustness,
    sampling,
    schedules,
    training,
)
from pyrobnn.layers.sde import brownian_increments, solve_sde
from pyrobnn.sampling import SGLD

NORMAL = dist.Normal(0.0, 1.0)
torch.manual_seed(0)
X, Y, LABELS = torch.randn(6, 2), torch.randn(6, 1), torch.tensor([0, 1, 2, 0, 1, 2])
LOADER = [(X, LABELS)]
PROBS, MEANS = torch.softmax(torch.randn(6, 3), -1), torch.randn(4, 6)
SCORES, OTHERS, ERRORS = torch.rand(6), torch.rand(6), torch.randint(0, 2, (6,)).bool()


def network(bn: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4) if bn else nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 3))


def built(bn: bool = False) -> pb.SupervisedModel:
    return pb.SupervisedModel(network(bn), pb.likelihoods.Categorical(), NORMAL, num_data=6)


MODEL, NORMED = built(), built(True)
GUIDE, POINT, LAPLACE = guides.MeanField(MODEL), guides.MAP(MODEL), guides.Laplace(MODEL).fit(MODEL, LOADER)
CHAINS = sampling.sample(MODEL, LOADER, kernel=SGLD(1e-4), num_samples=8, num_chains=2, progress=False)
REAL_MODEL = pb.SupervisedModel(nn.Linear(2, 2), pb.likelihoods.HeteroscedasticNormal(), NORMAL, num_data=6)
REAL = pb.predict(REAL_MODEL, guides.MeanField(REAL_MODEL), X, 4)
WITH_VELOCITIES = sampling.sample(
    MODEL, LOADER, kernel=sampling.SGHMC(1e-4), num_samples=8, num_chains=2, progress=False
)
SAVED = Path(tempfile.mkdtemp()) / "saved"
pb.save(SAVED, MODEL, GUIDE)
FIT = {"epochs": 2, "progress": False}


def fitted(model: Any = MODEL, guide: Any = None, loader: Any = LOADER, **options: Any) -> Any:
    return pb.fit(model, guides.MeanField(MODEL) if guide is None else guide, loader, **FIT | options)


def game() -> training.Game:
    net = nn.Linear(2, 1)
    return training.Game([training.Phase(training.GamePlayer("a", net), lambda x: net(x).mean())])


def laplace_fit(model: Any = MODEL, loader: Any = LOADER, **options: Any) -> Any:
    return guides.Laplace(MODEL).fit(model, loader, **options)


def method(owner: Any, name: str) -> Callable[..., Any]:
    """A method under a name of its own, not that of a function of this module."""
    return lambda **options: getattr(owner, name)(**options)


def elbo_loss(**options: Any) -> Any:
    return objectives.ELBO(**options).loss(MODEL, GUIDE, X, LABELS)


def perturbed_by(kind: Any) -> Callable[..., Any]:
    """The loss at inputs that a perturbation of this kind has made."""
    return lambda **options: robustness.training.AdversarialTraining(kind(**options)).loss(MODEL, GUIDE, X, LABELS)


PREDICTION = pb.predict(MODEL, GUIDE, X, 3, return_draws=True)
FAILED = torch.cat([PREDICTION.predicted[:3], (PREDICTION.predicted[3:] + 1) % 3])
"""Labels of which the prediction has three right."""
OUTPUTS = detection.NetworkOutputs(torch.randn(2, 6, 3), torch.randn(2, 6, 4), targets=LABELS)
CONFIDENT = detection.ConfidNet(MODEL, GUIDE, hidden=(4,), num_samples=2)
WRONG = [(X.repeat(10, 1), (PREDICTION.predicted.repeat(10) + torch.arange(60) % 3) % 3)]
"""Data of which two thirds are predicted wrongly."""
CONFIDENT.fit(WRONG, epochs=1)


def confidnet_fit(loader: Any = WRONG, **options: Any) -> Any:
    return detection.ConfidNet(MODEL, GUIDE, hidden=(4,), num_samples=2).fit(loader, **options)


MAXIMUM = influence.refit(MODEL, POINT, LOADER)

LAPLACE_THERE = guides.Laplace(MODEL, init=MAXIMUM).fit(MODEL, LOADER)


def influential(kind: Any) -> Callable[..., Any]:
    """An object of a method of influence, and what it says of one test datum."""
    return lambda **options: kind(**options).upweighting(X[:1], LABELS[:1])


PREDICT = (pb.predict, {"model": MODEL, "guide": GUIDE, "data": X, "num_samples": 2})
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "SupervisedModel": (
        pb.SupervisedModel,
        {"net": network(), "likelihood": pb.likelihoods.Categorical(), "prior": NORMAL, "num_data": 6},
    ),
    "bayesianize": (pb.bayesianize, {"net": network(), "prior": NORMAL}),
    "fit": (fitted, dict.fromkeys(inspect.signature(pb.fit).parameters)),
    "sample": (
        pb.sample,
        {"model": MODEL, "data": LOADER, "kernel": SGLD(1e-4), "num_samples": 2, "progress": False},
    ),
    "fit_members": (
        training.fit_members,
        {"model": MODEL, "guide": guides.DeltaMixture(MODEL, 2), "loader": LOADER, "epochs": 1},
    ),
    "run_seeds": (training.run_seeds, {"function": float, "seeds": [1, 2]}),
    "finetune": (pb.finetune, {"net": network(), "loader": LOADER, "num_data": 6, "epochs": 1, "progress": False}),
    "predict": PREDICT,
    "predict of Laplace": (pb.predict, PREDICT[1] | {"guide": LAPLACE, "predictor": "linearized"}),
    "predict_batches": (lambda **o: list(pb.predict_batches(**o)), PREDICT[1]),
    "predict_joint": (pb.predict_joint, {"model": MODEL, "guide": GUIDE, "inputs": X, "num_samples": 2}),
    "predict_joint of Laplace": (pb.predict_joint, {"model": MODEL, "guide": LAPLACE, "inputs": X, "num_samples": 2}),
    "Predictive": (lambda **o: pb.Predictive(**o)(X), {"model": MODEL, "guide": GUIDE, "num_samples": 2}),
    "FunctionalELBO": (
        lambda **o: pb.function_space.FunctionalELBO(**o).loss(MODEL, GUIDE, X, LABELS),
        dict.fromkeys(inspect.signature(pb.function_space.FunctionalELBO.__init__).parameters)
        | {"self": None, "prior": lambda a, b: (-(a[:, None] - b).square().sum(2)).exp()},
    ),
    "RandomNetworks": (pb.function_space.RandomNetworks, {"num_networks": 3}),
    "kernel": (pb.function_space.kernel, {"model": pb.bayesianize(nn.Linear(3, 1)), "x1": torch.randn(4, 3)}),
    "kernel_diagonal": (
        pb.function_space.kernel_diagonal,
        {"model": pb.bayesianize(nn.Linear(3, 1)), "x": torch.randn(4, 3)},
    ),
    "infinite_width": (
        pb.function_space.infinite_width,
        {
            "model": pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(0.1), num_data=4),
            "x": torch.randn(4, 3),
            "y": torch.randn(4, 1),
        },
    ),
    "log_evidence": (
        pb.function_space.log_evidence,
        {
            "model": pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(0.1), num_data=4),
            "x": torch.randn(4, 3),
            "y": torch.randn(4, 1),
        },
    ),
    "Monotone": (pb.function_space.Monotone, {"input": 0, "inputs": X}),
    "DerivativeSign": (pb.function_space.DerivativeSign, {"input": 0, "sign": "positive", "inputs": X}),
    "Bounds": (pb.function_space.Bounds, {"lower": 0.0, "upper": 1.0, "inputs": X}),
    "Invariance": (pb.function_space.Invariance, {"transform": torch.neg, "inputs": X}),
    "ExpertAgreement": (pb.function_space.ExpertAgreement, {"expert": torch.sin, "inputs": X}),
    "FairnessGap": (pb.function_space.FairnessGap, {"group": torch.signbit, "inputs": X}),
    "UncertaintyOffData": (pb.function_space.UncertaintyOffData, {"minimum": 0.5, "inputs": X}),
    "violations": (
        pb.function_space.violations,
        {
            "model": MODEL,
            "guide": GUIDE,
            "constraint": pb.function_space.Bounds(0.0, 1.0, X),
            "inputs": X,
            "num_samples": 2,
        },
    ),
    "DataBox": (pb.function_space.DataBox, {"low": 0.0, "high": 1.0}),
    "DataBox.around": (pb.function_space.DataBox.around, {"inputs": X}),
    "Jitter": (pb.function_space.Jitter, {"amount": 0.1}),
    "check": (pb.check, {"model": MODEL, "guide": GUIDE, "loader": LOADER, "num_samples": 30}),
    "describe": (pb.describe, {"model": MODEL, "guide": GUIDE}),
    "to_arviz": (
        lambda model, posterior, x, y, **o: pb.to_arviz(model, posterior, x, y, **o),
        {"model": MODEL, "posterior": GUIDE, "x": X, "y": LABELS, "num_samples": 2},
    ),
    "recalibrate_batch_norm": (
        pb.recalibrate_batch_norm,
        {"model": NORMED, "guide": guides.MAP(NORMED), "loader": LOADER},
    ),
    "distill": (pb.distill, {"guide": CHAINS, "batch_size": 4, "steps": 1, "components": 2, "progress": False}),
    "Laplace.fit": (laplace_fit, {"model": MODEL, "loader": LOADER}),
    "Laplace.fit, held out": (
        laplace_fit,
        {"model": MODEL, "loader": LOADER, "prior_precision": "held_out", "held_out": [(X.clone(), LABELS)]},
    ),
    "ELBO": (elbo_loss, {}),
    "RegularizedELBO": (objectives.RegularizedELBO, {"auxiliary": objectives.perturbed(0.1)}),
    "OutlierExposure": (objectives.OutlierExposure, {"outliers": [X]}),
    "UnlabeledLoader": (lambda **o: objectives.UnlabeledLoader(**o).next_batch(), {"inputs": X}),
    "PiModel": (objectives.PiModel, {"unlabeled": [X]}),
    "TemporalEnsembling": (objectives.TemporalEnsembling, {"unlabeled": objectives.UnlabeledLoader(X)}),
    "MeanTeacher": (objectives.MeanTeacher, {"unlabeled": [X]}),
    "DirichletELBO": (objectives.DirichletELBO, {"outliers": [X]}),
    "DirichletTerm": (objectives.DirichletTerm, {}),
    "DirichletOutliers": (objectives.DirichletOutliers, {"outliers": [X]}),
    "MisleadingEvidence": (objectives.MisleadingEvidence, {}),
    "AdversarialELBO": (objectives.AdversarialELBO, {}),
    "perturbed": (lambda epsilon: objectives.perturbed(epsilon)(X), {"epsilon": 0.1}),
    "Tempered": (objectives.Tempered, {"temperature": 1.0}),
    "MeanField": (guides.MeanField, {"model": MODEL}),
    "MAP": (guides.MAP, {"model": MODEL}),
    "LowRankNormal": (guides.LowRankNormal, {"model": MODEL, "rank": 2}),
    "SWAG": (guides.SWAG, {"model": MODEL}),
    "Laplace": (guides.Laplace, {"model": MODEL}),
    "MCDropout": (guides.MCDropout, {"model": MODEL}),
    "DeltaMixture": (guides.DeltaMixture, {"model": MODEL, "num_members": 2}),
    "DeltaMixture.from_networks": (
        guides.DeltaMixture.from_networks,
        {"model": MODEL, "networks": [network(), nn.Sequential(*network()[:3], nn.Linear(4, 3))]},
    ),
    "DeltaMixture.from_draws": (guides.DeltaMixture.from_draws, {"model": MODEL, "draws": dict(GUIDE.sample(3))}),
    "LowRankEnsemble": (guides.LowRankEnsemble, {"model": MODEL, "num_members": 2}),
    "Chains": (guides.Chains, {"model": MODEL, "num_chains": 1, "num_samples": 2}),
    "Chains.from_draws": (
        guides.Chains.from_draws,
        {"model": MODEL, "draws": {n: v.unsqueeze(0) for n, v in GUIDE.sample(3).items()}},
    ),
    "Composite": (guides.Composite, {"model": MODEL, "rules": [("*", guides.MAP)]}),
    "Generator": (guides.Generator, {"model": MODEL}),
    "guide.sample": (GUIDE.sample, {"num_samples": 2}),
    "Categorical": (pb.likelihoods.Categorical, {}),
    "Normal": (pb.likelihoods.Normal, {}),
    "Bernoulli": (pb.likelihoods.Bernoulli, {}),
    "Poisson": (pb.likelihoods.Poisson, {}),
    "HeteroscedasticNormal": (pb.likelihoods.HeteroscedasticNormal, {}),
    "StudentT": (pb.likelihoods.StudentT, {}),
    "likelihoods.Laplace": (pb.likelihoods.Laplace, {}),
    "LogNormal": (pb.likelihoods.LogNormal, {}),
    "Gamma": (pb.likelihoods.Gamma, {}),
    "NegativeBinomial": (pb.likelihoods.NegativeBinomial, {}),
    "ZeroInflatedPoisson": (pb.likelihoods.ZeroInflatedPoisson, {}),
    "Ordinal": (pb.likelihoods.Ordinal, {"num_classes": 3}),
    "MixtureDensity": (pb.likelihoods.MixtureDensity, {"num_components": 2}),
    "Dirichlet": (pb.likelihoods.Dirichlet, {}),
    "dirichlet_measures": (metrics.dirichlet_measures, {"concentrations": PROBS}),
    **(
        {
            "ConditionalFlow": (pb.likelihoods.ConditionalFlow, {"num_targets": 2, "context": 3}),
            "NormalizingFlow": (guides.NormalizingFlow, {"model": MODEL}),
        }
        if importlib.util.find_spec("zuko")  # the extra flows
        else {}
    ),
    **(
        {"gpytorch_kernel": (pb.function_space.gpytorch_kernel, {"model": pb.bayesianize(nn.Linear(3, 1))})}
        if importlib.util.find_spec("gpytorch")  # the extra gp
        else {}
    ),
    "Prediction.joint_entropy_split": (REAL.joint_entropy_split, {}),
    "Prediction.cdf": (REAL.cdf, {"y": Y}),
    "Prediction.quantile": (REAL.quantile, {"q": 0.5}),
    "Prediction.interval": (REAL.interval, {}),
    "Prediction.sample": (REAL.sample, {}),
    "he": (lambda **o: pb.bayesianize(network(), priors.he(**o)), {}),
    "glorot": (lambda **o: pb.bayesianize(network(), priors.glorot(**o)), {}),
    "lecun": (lambda **o: pb.bayesianize(network(), priors.lecun(**o)), {}),
    "centered": (lambda **o: pb.bayesianize(network(), priors.centered(**o)), {}),
    "horseshoe": (lambda **o: pb.bayesianize(network(), priors.horseshoe(**o)), {}),
    "learned_scale": (lambda **o: pb.bayesianize(network(), priors.learned_scale(**o)), {}),
    "latent_scale": (lambda **o: pb.bayesianize(network(), priors.latent_scale(**o)), {}),
    "scale_mixture": (priors.scale_mixture, {}),
    "last_layer": (priors.last_layer, {"net": network(), "prior": NORMAL}),
    "SGLD": (SGLD, {"step_size": 1e-4}),
    "SGHMC": (sampling.SGHMC, {"step_size": 1e-4}),
    "SGNHT": (sampling.SGNHT, {"step_size": 1e-4}),
    "PreconditionedSGLD": (sampling.PreconditionedSGLD, {"step_size": 1e-4}),
    "Cyclical": (sampling.Cyclical, {"kernel": SGLD(1e-4), "cycle_length": 4}),
    "HMC": (sampling.HMC, {}),
    "NUTS": (sampling.NUTS, {}),
    "Exponential": (schedules.Exponential, {"start": 1.0, "rate": 0.1, "floor": 0.1}),
    "Linear": (schedules.Linear, {"start": 0.0, "end": 1.0, "num_values": 3}),
    "PolynomialDecay": (schedules.PolynomialDecay, {"initial": 1.0, "delay": 2.0}),
    "GaussianRampUp": (schedules.GaussianRampUp, {"end": 1.0, "num_steps": 2}),
    "CosineCycles": (schedules.CosineCycles, {"initial": 1.0, "cycle_length": 2}),
    "FGSM": (robustness.FGSM, {"epsilon": 0.1}),
    "PGD": (robustness.PGD, {"epsilon": 0.1}),
    "APGD": (robustness.APGD, {"epsilon": 0.1}),
    "APGDTargeted": (robustness.APGDTargeted, {"epsilon": 0.1}),
    "FAB": (robustness.FAB, {"epsilon": 0.1}),
    "Square": (robustness.Square, {"epsilon": 0.1}),
    "AutoAttack": (robustness.AutoAttack, {"epsilon": 0.1}),
    "auto_attack": (
        robustness.auto_attack,
        {
            **{"model": MODEL, "guide": GUIDE, "x": X, "y": LABELS, "epsilon": 0.1, "steps": 2, "queries": 3},
            **{"version": "standard", "repeats": 1, "num_samples": 2, "seed": 0},
        },
    ),
    "LInf": (robustness.LInf, {"epsilon": 0.1}),
    **{name: (getattr(robustness, name), {"epsilon": 0.1}) for name in ("MIM", "CarliniWagnerMargin", "SPSA")},
    **{name: (getattr(robustness, name), {"clip": (0.0, 1.0)}) for name in ("CarliniWagnerL2", "LBFGS")},
    **{name: (getattr(robustness, name), {}) for name in ("Uncertainty", "Evasion")},
    "Robustness of attacks": (
        robustness.evaluate,
        {
            **{"model": MODEL, "guide": GUIDE, "data": LOADER, "attacks": [robustness.FGSM(0.1)], "num_samples": 2},
            **{"epsilon": 0.1, "check_masking": False, "num_checked": 10, "confidence_level": 0.9, "seed": 0},
        },
    ),
    "FeatureAttack": (
        robustness.FeatureAttack,
        {"epsilon": 0.1, "layer": "0", "images": X, "labels": LABELS},
    ),
    "Attack.run": (
        method(robustness.PGD(0.1, steps=1), "run"),
        {
            **{"model": MODEL, "guide": GUIDE, "x": X, "y": LABELS, "num_samples": 2, "draws": "pinned", "seed": 0},
            **{"likelihood": None, "batch_size": None, "max_bytes": 2**20, "max_queries": None},
        },
    ),
    "AdversarialTraining": (
        lambda **o: robustness.training.AdversarialTraining(**o).loss(MODEL, GUIDE, X, LABELS),
        {"perturbation": robustness.training.ExplicitDistribution(0.1, num_steps=1, num_draws=1)},
    ),
    "FastGradient": (perturbed_by(robustness.training.FastGradient), {"epsilon": 0.1}),
    "ProjectedGradient": (perturbed_by(robustness.training.ProjectedGradient), {"epsilon": 0.1, "steps": 1}),
    "FeatureScattering": (perturbed_by(robustness.training.FeatureScattering), {"epsilon": 0.1, "iterations": 2}),
    "LogitPairing": (
        lambda **o: robustness.training.LogitPairing(**o).loss(MODEL, GUIDE, X, LABELS),
        {"perturbation": robustness.training.FastGradient(0.1)},
    ),
    "TRADES": (
        lambda **o: objectives.ELBO(terms=[robustness.training.TRADES(**o)]).loss(MODEL, GUIDE, X, LABELS),
        {"epsilon": 0.1, "steps": 1},
    ),
    "AmortizedDistribution": (
        robustness.training.AmortizedDistribution,
        {"generator": nn.Linear(6, 4), "epsilon": 0.1},
    ),
    "ImplicitDistribution": (
        robustness.training.ImplicitDistribution,
        {"generator": nn.Linear(6, 2), "encoder": nn.Linear(2, 128), "epsilon": 0.1},
    ),
    "PerturbationGenerator": (robustness.training.PerturbationGenerator, {"channels": 1, "width": 2}),
    "PerturbationEncoder": (robustness.training.PerturbationEncoder, {"channels": 1, "width": 2}),
    "Denoiser": (robustness.Denoiser, {"network": nn.Identity()}),
    "fit_denoiser": (
        lambda **o: robustness.fit_denoiser(**o),
        {
            "denoiser": robustness.Denoiser(nn.Linear(2, 2)),
            "model": MODEL,
            "guide": GUIDE,
            "loader": LOADER,
            "perturbation": robustness.training.FastGradient(0.1),
            "epochs": 1,
        },
    ),
    "denoiser_report": (
        robustness.denoiser_report,
        {
            "model": MODEL,
            "guide": GUIDE,
            "denoiser": robustness.Denoiser(nn.Linear(2, 2)),
            "x": X,
            "y": LABELS,
            "attack": robustness.FGSM(0.1),
            "num_samples": 2,
        },
    ),
    "ExplicitDistribution": (perturbed_by(robustness.training.ExplicitDistribution), {"epsilon": 0.1, "num_steps": 1}),
    **{
        kind.__name__: (influential(kind), {"model": MODEL, "guide": guide, "loader": LOADER, **options})
        for kind, guide, options in (
            (influence.Exact, MAXIMUM, {"matrix": "gauss_newton", "sites": ["net.0.weight"]}),
            (influence.ConjugateGradient, MAXIMUM, {"matrix": "gauss_newton", "tolerance": 1e-3}),
            (influence.LiSSA, MAXIMUM, {"depth": 5, "damping": 5.0, "tolerance": 10.0}),
            (influence.LaplaceCurvature, LAPLACE_THERE, {}),
            (influence.EKFAC, MAXIMUM, {}),
            (influence.RandomProjection, MAXIMUM, {"dim": 4}),
            (influence.PosteriorCovariance, GUIDE, {"num_samples": 3}),
        )
    },
    "removal": (
        method(influence.Exact(MODEL, MAXIMUM, LOADER, matrix="gauss_newton"), "removal"),
        {"x": X, "y": LABELS, "groups": [[0, 1]], "form": "newton"},
    ),
    "perturbation": (
        method(influence.PosteriorCovariance(MODEL, GUIDE, LOADER, num_samples=3), "perturbation"),
        {"x": X, "y": LABELS, "rows": [0]},
    ),
    "refit": (influence.refit, {"model": MODEL, "guide": MAXIMUM, "loader": LOADER}),
    "poison": (
        influence.poison,
        {"model": MODEL, "guide": MAXIMUM, "loader": LOADER, "x": X[:1], "y": LABELS[:1], "rows": [0]}
        | {"step_size": 0.1, "steps": 1, "sites": ["net.3.weight"]},
    ),
    "linear_datamodeling_score": (
        influence.linear_datamodeling_score,
        {"predicted": torch.randn(2, 5), "observed": torch.randn(2, 5)},
    ),
    "importance_k_hat": (
        lambda model, guide, x, y, **o: diagnostics.importance_k_hat(model, guide, x, y, **o),
        {"model": MODEL, "guide": GUIDE, "x": X, "y": LABELS, "num_samples": 30},
    ),
    "function_space": (
        lambda model, posterior, x, **o: diagnostics.function_space_diagnostics(model, posterior, x, **o),
        {"model": MODEL, "posterior": CHAINS, "x": X},
    ),
    "log_density": (
        lambda model, posterior, x, y, **o: diagnostics.log_density_diagnostics(model, posterior, x, y, **o),
        {"model": MODEL, "posterior": CHAINS, "x": X, "y": LABELS},
    ),
    "weight_statistics": (diagnostics.weight_statistics, {"model": MODEL, "guide": GUIDE, "num_samples": 5}),
    "estimator_report": (
        diagnostics.estimator_report,
        {"model": MODEL, "guide": GUIDE, "batch": (X, LABELS), "estimators": ["shared"], "num_samples": 2},
    ),
    "pac_bayes_bound": (
        diagnostics.generalization.pac_bayes_bound,
        {"model": MODEL, "guide": GUIDE, "loader": [(X.repeat(2, 1), LABELS.repeat(2))], "num_samples": 2},
    ),
    "input_stability": (
        diagnostics.generalization.input_stability,
        {"model": MODEL, "posterior": GUIDE, "x": X, "y": LABELS, "num_samples": 2},
    ),
    "lipschitz_bound": (diagnostics.generalization.lipschitz_bound, {"net": network(), "x": X}),
    "local_lipschitz": (diagnostics.generalization.local_lipschitz, {"net": network(), "x": X}),
    "input_curvature": (
        diagnostics.generalization.input_curvature,
        {"net": network(), "x": X, "y": LABELS, "likelihood": pb.likelihoods.Categorical()},
    ),
    "random_feature_sweep": (
        diagnostics.generalization.random_feature_sweep,
        {"train": (X, Y), "test": (X, Y), "widths": [2, 4], "repetitions": 2},
    ),
    "random_label_fit": (
        diagnostics.generalization.random_label_fit,
        {"build": lambda: (MODEL, guides.MeanField(MODEL)), "x": X, "epochs": 1, "repetitions": 1},
    ),
    "network_sweep": (
        diagnostics.generalization.network_sweep,
        {
            "build": lambda width: (MODEL, guides.MeanField(MODEL)),
            "train": (X, LABELS),
            "test": (X, LABELS),
            "widths": [2],
            "epochs": 1,
            "repetitions": 1,
        },
    ),
    "annealed_importance_sampling": (
        lambda model, x, y, **o: diagnostics.generalization.annealed_importance_sampling(model, x, y, **o),
        {"model": MODEL, "x": X, "y": LABELS, "num_chains": 2, "num_temperatures": 2},
    ),
    "evidence_estimates": (
        lambda model, x, y, **o: diagnostics.generalization.evidence_estimates(model, x, y, **o),
        {"model": MODEL, "x": X, "y": LABELS, "guide": GUIDE, "num_samples": 3},
    ),
    "kl_inverse": (diagnostics.generalization.kl_inverse, {"q": 0.1, "c": 0.2}),
    "k_hat_threshold": (diagnostics.k_hat_threshold, {"num_samples": 100}),
    "kinetic_temperature": (diagnostics.kinetic_temperature, {"chains": WITH_VELOCITIES}),
    "energy_bfmi": (
        diagnostics.energy_bfmi,
        {"chains": guides.Chains(MODEL, 2, 8, stats={"energy": torch.rand(2, 8)})},
    ),
    "save": (pb.save, {"path": Path("a"), "model": MODEL, "guide": GUIDE}),
    "load": (lambda **o: pb.load(**o), {"path": SAVED, "net": network()}),
    "Player": (
        training.Player,
        {"name": "critic", "objective": objectives.ELBO(), "module": nn.Linear(1, 1)},
    ),
    "GamePlayer": (training.GamePlayer, {"name": "critic", "module": nn.Linear(1, 1)}),
    "Phase": (training.Phase, {"players": training.GamePlayer("a", nn.Linear(1, 1)), "loss": torch.sum}),
    "Game.play": (lambda epochs, **o: game().play([X], **{"epochs": epochs, "progress": False} | o), {"epochs": 1}),
    "FunctionTracker": (training.trackers.FunctionTracker, {"function": print}),
    "DiscriminatorWatch": (training.DiscriminatorWatch, {}),
    "Snapshots": (training.Snapshots, {"model": MODEL, "guide": POINT, "cycle": 2}),
    "make_optimizer": (training.make_optimizer, {"model": MODEL, "guide": GUIDE}),
    "TemperatureScaling": (calibration.TemperatureScaling, {}),
    "VectorScaling": (calibration.VectorScaling, {}),
    "MatrixScaling": (calibration.MatrixScaling, {}),
    "HistogramBinning": (calibration.HistogramBinning, {}),
    "QuantileRecalibration": (calibration.QuantileRecalibration, {}),
    **{
        f"{kind.__name__}.fit": (method(kind(), "fit"), {"prediction": PREDICTION, "targets": LABELS})
        for kind in (calibration.TemperatureScaling, calibration.DirichletScaling, calibration.IsotonicCalibration)
    },
    **{
        name: (getattr(conformal, name), {})
        for name in (
            "RAPS",
            "SAPS",
            "ConformalClassifier",
            "ConformalRegressor",
            "AdaptiveConformalRegressor",
            "CrossConformalClassifier",
            "CrossConformalRegressor",
            "NormalizedResidual",
            "QuantileResidual",
            "DensityScore",
        )
    },
    "coverage_of_sets": (
        conformal.coverage_of_sets,
        {"sets": torch.ones(4, 2, dtype=torch.bool), "labels": LABELS[:4] * 0},
    ),
    "coverage_of_intervals": (
        conformal.coverage_of_intervals,
        {"lower": torch.zeros(3), "upper": torch.ones(3), "targets": torch.zeros(3)},
    ),
    "expected_improvement": (
        decisions.expected_improvement,
        {"mean": torch.zeros(3), "std": torch.ones(3), "best": 0.0},
    ),
    "BatchBALD": (decisions.BatchBALD, {}),
    "wheel": (decisions.wheel, {"num_rounds": 5}),
    "LinearQ": (decisions.LinearQ, {"num_inputs": 1, "num_actions": 2}),
    "Maze": (decisions.Maze, {}),
    "QLearning": (decisions.QLearning, {"q": decisions.LinearQ(64, 4), "environment": decisions.Maze()}),
    "NeuralLinearRewards": (decisions.NeuralLinearRewards, {"body": nn.Identity(), "num_features": 1, "num_arms": 2}),
    "LinearRewards": (decisions.LinearRewards, {"num_inputs": 1, "num_arms": 2}),
    "UCB": (decisions.UCB, {"rewards": decisions.LinearRewards(1, 2)}),
    "EpsilonGreedy": (decisions.EpsilonGreedy, {"rewards": decisions.LinearRewards(1, 2)}),
    "Abstention": (detection.Abstention, {}),
    **{
        name: (getattr(detection, name), {})
        for name in ("Energy", "GEN", "Mahalanobis", "RelativeMahalanobis", "KNN", "ViM")
    },
    **{
        name: (getattr(detection, name), {"logits": PROBS})
        for name in ("energy", "generalized_entropy", "max_logit", "max_softmax", "softmax_entropy")
    },
    "network_outputs": (
        lambda **o: list(detection.network_outputs(**o)),
        {"model": MODEL, "guide": GUIDE, "data": X, "num_samples": 2},
    ),
    "NetworkOutputs": (detection.NetworkOutputs, {"logits": torch.zeros(2, 6, 3), "features": torch.zeros(2, 6, 4)}),
    "Energy()": (method(detection.Energy(), "forward"), {"outputs": OUTPUTS, "form": "mean"}),
    "ODIN": (detection.ODIN, {"model": MODEL, "guide": GUIDE, "num_samples": 2}),
    "ODIN.tune": (
        method(detection.ODIN(MODEL, GUIDE, num_samples=2), "tune"),
        {"in_": X, "out": {"a": X + 1.0}, "temperatures": [1.0], "epsilons": [0.0]},
    ),
    "evaluate": (
        detection.evaluate,
        {"model": MODEL, "guide": GUIDE, "in_": X, "out": {"a": X + 1.0}, "num_samples": 2, "num_resamples": 2},
    ),
    "plots.detection": (plots.detection, {"by_set": {"a": {"msp": (0.6, 0.5, 0.7)}}}),
    "KNN.fit": (method(detection.KNN(2), "fit"), {"outputs": OUTPUTS}),
    "Abstention.fit": (
        method(detection.Abstention(0.99, 0.01, num_coverages=1), "fit"),
        {"prediction": PREDICTION, "targets": LABELS},
    ),
    "failure_table": (
        detection.failure_table,
        {"prediction": PREDICTION, "targets": FAILED, "scores": {"mine": PREDICTION.total}},
    ),
    "true_class_uncertainty": (detection.true_class_uncertainty, {"prediction": PREDICTION, "targets": LABELS}),
    "MaxLogitPNorm": (detection.MaxLogitPNorm, {}),
    "MaxLogitPNorm.fit": (method(detection.MaxLogitPNorm(), "fit"), {"prediction": PREDICTION, "targets": FAILED}),
    "ConfidNet": (detection.ConfidNet, {"model": MODEL, "guide": GUIDE, "last_layer": None}),
    "ConfidNet.fit": (confidnet_fit, {"loader": WRONG, "epochs": 1, "batch": None, "seed": None}),
    "ConfidNet.confidence": (
        method(CONFIDENT, "confidence"),
        {"data": X, "batch": None},
    ),
    "RiskControl": (conformal.RiskControl, {"loss": conformal.missed_labels}),
    "conformalize": (
        method(conformal.ConformalClassifier(), "conformalize"),
        {"prediction": PREDICTION, "targets": LABELS, "groups": None, "weights": None},
    ),
    "predict_set": (
        method(conformal.ConformalClassifier(confidence_level=0.5).conformalize(PREDICTION, LABELS), "predict_set"),
        {"prediction": PREDICTION, "groups": None, "weights": None},
    ),
    "calibrator": (
        calibration.VectorScaling(on="draws").fit(PREDICTION, LABELS).forward,
        {"prediction": PREDICTION},
    ),
    **{
        name: (getattr(metrics, name), {"probs": PROBS, "y": LABELS})
        for name in ("accuracy", "brier", "nll", "expected_calibration_error", "adaptive_calibration_error")
    },
    "reliability_curve": (metrics.reliability_curve, {"probs": PROBS, "y": LABELS}),
    **{name: (getattr(metrics, name), {"probs": PROBS}) for name in ("entropy", "least_confidence")},
    **{
        name: (getattr(metrics, name), {"probs": PROBS.unsqueeze(0)})
        for name in (
            "expected_entropy",
            "mutual_information",
            "predictive_entropy",
            "probability_variance",
            "variation_ratio",
        )
    },
    **{
        name: (getattr(metrics, name), {"in_distribution": SCORES, "out_of_distribution": OTHERS})
        for name in ("auroc", "aupr", "fpr_at_tpr", "detection_report", "detection_intervals")
    },
    **{
        name: (getattr(metrics, name), {"uncertainty": SCORES, "error": ERRORS})
        for name in ("aurc", "augrc", "risk_coverage", "failure_report")
    },
    "crps": (metrics.crps, {"draws": MEANS, "y": SCORES}),
    "gaussian_crps": (metrics.gaussian_crps, {"mean": SCORES, "std": OTHERS + 0.1, "y": SCORES}),
    "interval_coverage": (metrics.interval_coverage, {"lower": SCORES, "upper": SCORES + 1.0, "y": SCORES}),
    "interval_width": (metrics.interval_width, {"lower": SCORES, "upper": SCORES + 1.0}),
    "interval_score": (
        metrics.interval_score,
        {"lower": SCORES, "upper": SCORES + 1.0, "y": SCORES, "level": 0.9, "weight": OTHERS},
    ),
    "cwce": (metrics.cwce, {"lower": MEANS, "upper": MEANS + 1.0, "y": SCORES, "levels": [0.2, 0.4, 0.6, 0.8]}),
    "epiw": (metrics.epiw, {"lower": MEANS, "upper": MEANS + 1.0}),
    "r_cwce": (
        metrics.r_cwce,
        {"mean": OTHERS, "lower": MEANS, "upper": MEANS + 1.0, "y": SCORES, "levels": [0.2, 0.4, 0.6, 0.8]},
    ),
    **{
        name: (getattr(metrics, name), {"loc": MEANS, "scale": MEANS.exp(), "y": SCORES})
        for name in ("gaussian_mixture_crps", "laplace_mixture_crps", "log_normal_mixture_crps")
    },
    "energy_score": (metrics.energy_score, {"draws": MEANS, "y": SCORES}),
    "pit_histogram": (metrics.pit_histogram, {"pit": SCORES}),
    "quantile_calibration": (metrics.quantile_calibration, {"pit": SCORES}),
    "plots.pit_histogram": (plots.pit_histogram, {"histogram": metrics.pit_histogram(SCORES)}),
    "plots.quantile_calibration": (
        plots.quantile_calibration,
        {"calibration": metrics.quantile_calibration(SCORES)},
    ),
    "RegressionScores": (metrics.RegressionScores, {}),
    "regression_scores": (
        pb.prediction.regression_scores,
        {"prediction": REAL, "targets": Y, "weight": OTHERS, "levels": [0.5], "num_targets": 2},
    ),
    "regression_report": (
        pb.regression_report,
        {"model": REAL_MODEL, "guide": guides.MAP(REAL_MODEL), "data": [(X, Y)], "num_samples": 2, "levels": [0.5]},
    ),
    "report": (
        pb.report,
        {"model": MODEL, "guide": GUIDE, "test": LOADER, "num_samples": 2, "num_bootstrap": 2, "num_examples": 1},
    ),
    "prediction.crps": (REAL.crps, {"y": Y}),
    "prediction.pit": (REAL.pit, {"y": Y}),
    "r2": (metrics.r2, {"mean": SCORES, "y": OTHERS}),
    "pinball": (metrics.pinball, {"prediction": SCORES, "y": OTHERS, "level": 0.5}),
    "rmse": (metrics.rmse, {"mean": SCORES, "y": OTHERS}),
    "variance_decomposition": (metrics.variance_decomposition, {"means": MEANS, "variances": MEANS.square()}),
    "ExpectedCalibrationError": (metrics.ExpectedCalibrationError, {}),
    "AdaptiveCalibrationError": (metrics.AdaptiveCalibrationError, {}),
    "rank_histogram": (plots.rank_histogram, {"ranks": torch.arange(10), "num_samples": 9}),
    "rank_ecdf": (plots.rank_ecdf, {"ranks": torch.arange(10), "num_samples": 9}),
    "plots.risk_coverage": (plots.risk_coverage, {"curves": {"a": metrics.risk_coverage(SCORES, ERRORS)}}),
    "simplex": (plots.simplex, {"concentrations": torch.ones(3)}),
    "reliability": (plots.reliability, {"probs": PROBS, "y": LABELS}),
    "confidence_histogram": (plots.confidence_histogram, {"probs": PROBS, "y": LABELS}),
    "Edges": (pb.structure.Edges, {"names": ["a", "b"], "operations": ["x", "y"]}),
    "Gates": (pb.structure.Gates, {}),
    "PerGroup": (pb.estimators.PerGroup, {}),
    "solve_sde": (solve_sde, {"drift": lambda t, h: -h, "diffusion": lambda t, h: 0.1 * h, "start": X, "steps": 2}),
    "brownian_increments": (brownian_increments, {"steps": 2, "shape": (2, 3)}),
}
"""Public calls that work as they stand; arguments that are None here have defaults of the call's own."""

ANY = (
    "a",
    "",
    None,
    -1,
    0,
    2.5,
    True,
    math.nan,
    math.inf,
    -math.inf,
    [1],
    {},
    object(),
    torch.nn.ReLU,
    torch.tensor([1.0, 2.0]),
    b"x",
)
"""What is tried for every argument."""

LEFT_OUT = {"ax", "figure", "progress"}  # of matplotlib; a flag
NAMED = re.compile(r"^[\w.]+( '[^']*')?(, \w+)*: ")


def is_the_callers(name: str, value: Any) -> bool:
    """Whether what fails is the caller's own: a network given inputs of another shape, a class called as a function."""
    return (name in ("data", "inputs", "x", "loader") and isinstance(value, torch.Tensor)) or (
        name == "predictor" and isinstance(value, type)
    )


def arguments(function: Callable[..., Any], given: dict[str, Any]) -> Iterator[str]:
    names = dict.fromkeys(given)
    wrapped = {
        "fit": pb.fit,
        "fitted": pb.fit,
        "laplace_fit": guides.Laplace.fit,
        "confidnet_fit": detection.ConfidNet.fit,
    }.get(function.__name__, function)
    kinds = inspect.signature(wrapped).parameters.values()
    names |= dict.fromkeys(p.name for p in kinds if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return (name for name in names if name not in LEFT_OUT | {"self"})


def complaint(function: Callable[..., Any], given: dict[str, Any]) -> str | None:
    """What is wrong with the error of a call, if it is not in the library's own words."""
    torch.manual_seed(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**given)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        own = Path(pb.__file__).parent
        if own in last.parents and NAMED.match(str(error)):
            return None
        return f"{type(error).__name__} of {last.name}: {str(error)[:100]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return None


@pytest.mark.parametrize("call", CALLS)
def test_bad_values_work_or_are_refused_by_name(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function, base = CALLS[call]
    base = {name: value for name, value in base.items() if value is not None}
    torch.manual_seed(1)
    function(**base)
    tried = (
        (name, value)
        for name in arguments(function, CALLS[call][1])
        for value in ANY
        if not is_the_callers(name, value)
    )
    said = ((name, value, complaint(function, base | {name: value})) for name, value in tried)
    found = [f"{name}={value!r:.30}: {error}" for name, value, error in said if error]
    assert not found, f"{len(found)} raw errors:\n" + "\n".join(found)
    written = {path.name for path in tmp_path.iterdir()} - {"a"}  # a directory that was asked for
    assert not written, f"written to the working directory: {written}"


@pytest.mark.parametrize(
    ("call", "name", "values"),
    [
        ("fit", "scale_lr", [-1.0, math.nan, math.inf, "a", True]),
        ("fit", "lr", [-1.0, math.nan, math.inf, "a", True, None]),
        ("fit", "elbo", [objectives.ELBO, objectives.ELBO(temperature=lambda step: 1.0 if step == 0 else -1.0), 3]),
        ("ELBO", "temperature", [-1.0, math.nan, "a", lambda step: -1.0, lambda step: math.nan, lambda step: "a"]),
        ("fit", "callbacks", [3, [3], print, [print, "a"]]),
        ("fit", "trackers", [3, [3], print, [print]]),
        ("fit", "players", [3, [3], "a"]),
        ("fit", "scheduler", [3, "cosine", lambda optimizer: None]),
        ("fit", "scheduler_per", ["batch", "step", 3]),
        ("fit", "early_stopping", [3, "yes", None, 0.1]),
        ("fit", "optimizer", ["adam", 3, nn.ReLU, lambda groups, lr: None]),
        ("fit", "device", ["nonsense", 3]),
        ("fit", "seed", ["a", -1, 2.5, True]),
        ("fit", "checkpoint", ["", 3]),
        ("fit", "clip_norm", [0, -1.0, math.nan, "a"]),
        ("fit", "validation", [3, [(X, LABELS + 3)], [(X, LABELS.float())]]),
        ("fit", "loader", [3, [(X, LABELS + 3)], [(X, LABELS - 1)]]),
        ("check", "loader", [3, [(X, LABELS + 3)], [(X, LABELS - 1)]]),
        ("Laplace.fit", "loader", [3, [(X, LABELS + 3)], [(X, LABELS - 1)]]),
        (
            "Laplace.fit, held out",
            "held_out",
            [3, [(X.clone(), LABELS + 3)], [(X.clone(), LABELS - 1)], [], LOADER, None],
        ),
        ("Laplace.fit, held out", "prior_precision", ["model", "evidence", "marglik", 3]),
        ("to_arviz", "y", [LABELS + 3, LABELS - 1]),
        ("sample", "data", [3, [(X, LABELS + 3)], (X, LABELS - 1)]),
        ("sample", "num_samples", [0, -1, 2.5, True, "a", None]),
        ("sample", "directory", ["", 3]),
        ("sample", "device", ["nonsense", 3]),
        ("predict", "num_samples", [0, -1, 2.5, True, "a", None]),
        ("predict", "max_bytes", [0, -1, 2.5, math.nan, math.inf, "a"]),
        ("predict", "likelihood", [3, "a", pb.likelihoods.Categorical]),
        ("predict", "link", ["a", 3, None]),
        ("predict", "guide", [3, "a", guides.MAP, {}, None]),
        ("predict_joint", "num_samples", [0, -1, 2.5, True, "a", None]),
        ("predict_joint", "exact", [1, "a", None]),
        ("predict_joint", "inputs", [3, "a", [X], X[:0], None]),
        ("finetune", "num_members", [0, 2.5, "a"]),
        ("finetune", "threshold", [0.0, math.nan, "a"]),
        ("finetune", "num_data", [0, -1, "a"]),
        ("check", "max_rows", [0, 2.5, math.inf]),
        ("MeanField", "init_scale", [0.0, -1.0, math.nan, math.inf, "a"]),
        ("LowRankNormal", "init_scale", [0.0, -1.0, math.nan, math.inf, "a"]),
        ("DeltaMixture", "spread", [-1.0, math.nan, math.inf, "a"]),
        ("HeteroscedasticNormal", "floor", [-1.0, math.nan, math.inf, True]),
        ("Categorical", "class_dim", [1.0, "a", None]),
        ("DirichletELBO", "outlier_weight", [-1.0, math.nan, math.inf, "a", None]),
        ("DirichletELBO", "outliers", [3, "a", nn.ReLU, X]),
        ("Dirichlet", "clamp", [0.0, -1.0, math.nan, math.inf, True]),
        ("guide.sample", "num_samples", [-1, 2.5, True, "a", None]),
        ("Gates", "logits", [math.nan, math.inf]),
        ("Player", "lr", [-1.0, math.nan, "a"]),
        ("GamePlayer", "lr", [-1.0, math.nan, "a"]),
        ("GamePlayer", "averaging", [-0.1, 1.0, math.nan, "a"]),
        ("Phase", "steps", [0, -1, 2.5, True, "a", None]),
        ("Game.play", "epochs", [0, -1, 2.5, True, "a", None]),
        ("Game.play", "checkpoint", ["", 3]),
        ("save", "path", ["", 3]),
    ],
)
def test_values_that_would_do_harm_without_a_word_are_refused(
    call: str, name: str, values: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that turn training around, options used after the first epoch only, labels beyond the classes."""
    monkeypatch.chdir(tmp_path)
    function, base = CALLS[call]
    base = {key: value for key, value in base.items() if value is not None}
    for value in values:
        with pytest.raises((ValueError, TypeError), match=NAMED):
            function(**base | {name: value})
    assert not list(tmp_path.iterdir())


def test_a_frozen_guide_and_one_of_another_model_are_refused_by_fit() -> None:
    frozen = guides.MeanField(MODEL).requires_grad_(False)
    with pytest.raises(ValueError, match=r"^guide: it is frozen"):
        fitted(guide=frozen)
    with pytest.raises(ValueError, match=r"^guide: "):
        fitted(guide=guides.MeanField(pb.SupervisedModel(nn.Linear(2, 3), MODEL.likelihood, NORMAL, num_data=6)))


def test_a_failure_of_the_callers_own_code_is_left_alone() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("mine")

    model = pb.SupervisedModel(Broken(2, 3), pb.likelihoods.Categorical(), NORMAL, num_data=6)
    with pytest.raises(KeyError, match="mine"):
        pb.predict(model, guides.MAP(model), X, 2)
