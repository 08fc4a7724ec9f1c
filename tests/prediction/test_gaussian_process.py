"""The Gaussian process of an ensemble: moments by hand, marginals, batches, refusals."""

from __future__ import annotations

import functools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, DeltaMixture, MeanField
from pyrobnn.prediction import GaussianPrediction, GaussianProcessPredictor
from tests.conformance.monte_carlo import Z, z_of_mean


def ensemble(likelihood: Any, outputs: int = 2) -> tuple[Any, DeltaMixture, Tensor, Tensor]:
    """Model, guide, inputs, and the members' outputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))
    model = pb.SupervisedModel(net, likelihood, dist.Normal(0.0, 1.0), num_data=20).double()
    guide = DeltaMixture(model, 4, init="prior").double()
    x = torch.randn(7, 3).double()
    members = guide.atoms(torch.arange(4))
    hidden = [(x @ members["net.0.weight"][m].T + members["net.0.bias"][m]).tanh() for m in range(4)]
    found = [h @ members["net.2.weight"][m].T + members["net.2.bias"][m] for m, h in enumerate(hidden)]
    return model, guide, x, torch.stack(found)


def test_its_covariance_is_that_of_the_members_and_a_ridge() -> None:
    model, guide, x, members = ensemble(pb.likelihoods.Normal(0.3))
    found = pb.predict_joint(model, guide, x, 5, predictor="gaussian_process", seed=0)
    ridge = 0.05 * members.var(0, correction=0).mean(1).repeat_interleave(2)
    covariance = torch.cov(members.flatten(1).T, correction=0) + ridge.diag()
    torch.testing.assert_close(found.mean, members.mean(0))
    torch.testing.assert_close(found.covariance, covariance)
    torch.testing.assert_close(found.target_covariance, covariance + 0.09 * torch.eye(14).double())
    marginal = pb.predict(model, guide, x, 5, predictor="gaussian_process")
    assert isinstance(marginal, GaussianPrediction)
    torch.testing.assert_close(marginal.mean, found.mean)
    torch.testing.assert_close(marginal.epistemic, found.variance)
    for index in range(7):
        torch.testing.assert_close(
            marginal.covariance[index], found.target_covariance[2 * index :][:2, 2 * index :][:, :2]
        )


def test_functions_have_its_moments() -> None:
    """20,000 functions, z below 5."""
    model, guide, x, _ = ensemble(pb.likelihoods.Normal(0.3))
    found = pb.predict_joint(model, guide, x, 20_000, predictor="gaussian_process", seed=0)
    moved = (found.draws - found.mean).flatten(1)
    assert z_of_mean(moved, torch.zeros(14).double()) < Z
    assert z_of_mean(moved.unsqueeze(2) * moved.unsqueeze(1), found.covariance) < Z


def test_classes_are_predicted_by_functions_of_the_gaussian() -> None:
    """Probabilities against those of 100,000 Gaussian outputs drawn here; 20,000 functions, z below 5."""
    model, guide, x, members = ensemble(pb.likelihoods.Categorical(), 3)
    found = pb.predict(model, guide, x, 20_000, predictor="gaussian_process", seed=0)
    joint = pb.predict_joint(model, guide, x, 20_000, predictor="gaussian_process", seed=0)
    torch.testing.assert_close(found.mean, joint.expectations.mean(0))
    torch.manual_seed(1)
    deviations = (members - members.mean(0)) / 2.0
    ridge = 0.05 * members.var(0, correction=0).mean(1).reshape(-1, 1)
    outputs = members.mean(0) + torch.tensordot(torch.randn(100_000, 4).double(), deviations, 1)
    outputs = outputs + ridge.sqrt() * torch.randn(outputs.shape).double()
    assert z_of_mean(joint.expectations, outputs.softmax(-1).mean(0)) < Z


def test_it_does_not_depend_on_how_inputs_are_cut() -> None:
    model, guide, x, _ = ensemble(pb.likelihoods.Normal(0.3))
    whole = pb.predict(model, guide, x, 5, predictor="gaussian_process", seed=3)
    parts = pb.predict(model, guide, [x[:3], x[3:]], 5, predictor="gaussian_process", seed=3)
    torch.testing.assert_close(whole.total, parts.total)
    kept = pb.predict(model, guide, x, 5, predictor="gaussian_process", seed=3, return_draws=True)
    assert kept.parameters is not None and kept.parameters["loc"].shape == (5, 7, 2)


def test_of_other_posteriors_it_has_the_moments_of_draws() -> None:
    model, _, x, _ = ensemble(pb.likelihoods.Normal(0.3))
    guide = MeanField(model, init_scale=0.2).double()
    weights = pb.predict_joint(model, guide, x, 30, seed=2)
    no_ridge = functools.partial(GaussianProcessPredictor, ridge=0.0)
    found = pb.predict_joint(model, guide, x, 30, predictor=no_ridge, seed=2)
    torch.testing.assert_close(found.covariance, weights.covariance)
    torch.testing.assert_close(found.mean, weights.mean)
    draws = pb.predict_joint(model, dict(guide.sample(6)), x, 6, predictor="gaussian_process")
    assert draws.covariance.shape == (14, 14)
    point = pb.predict_joint(model, MAP(model).double(), x, 3, predictor="gaussian_process")
    assert float(point.covariance.abs().max()) == 0.0


def test_refusals() -> None:
    model, guide, x, _ = ensemble(pb.likelihoods.Normal(0.3))
    with pytest.raises(ValueError, match=r"^ridge: "):
        pb.predict(model, guide, x, 5, predictor=functools.partial(GaussianProcessPredictor, ridge=-1.0))
    latent, own, x, _ = ensemble(pb.likelihoods.Normal(dist.LogNormal(0.0, 0.5)))
    with pytest.raises(TypeError, match=r"^likelihood: it has the latent site 'scale'"):
        pb.predict(latent, own, x, 5, predictor="gaussian_process")
