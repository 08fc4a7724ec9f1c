"""Gradients of the potential: minibatches, several chains, constrained sites."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrobnn import likelihoods
from pyrobnn.model.layout import Layout
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling.sgmcmc.batches import Batches
from pyrobnn.sampling.sgmcmc.gradients import PotentialGradient
from tests.sampling.models import classifier, rows


@pytest.mark.parametrize("num_chains", [1, 2, 4])
def test_minibatch_gradients_are_unbiased(num_chains: int) -> None:
    """Their mean over the batches of a pass is the gradient of all data: the plate scales by N / B."""
    model, (x, y) = classifier().double(), rows()
    x = x.double()
    start = torch.randn(num_chains, 31, dtype=torch.float64)
    gradient = PotentialGradient(model, Layout.of(model), start)
    full = gradient((x, y)).clone()
    parts = torch.stack([gradient((x[i : i + 8], y[i : i + 8])).clone() for i in (0, 8, 16)])
    torch.testing.assert_close(parts.mean(0), full)
    assert not torch.allclose(parts[0], full)


@pytest.mark.parametrize("vmap", [True, False])
def test_gradients_of_chains_are_those_of_single_chains(vmap: bool) -> None:
    """With a constrained site: its Jacobian is in the potential, which autograd differentiates here."""
    noise = likelihoods.Normal(dist.Gamma(3.0, 2.0))
    model = SupervisedModel(nn.Linear(3, 1), noise, dist.Normal(0.0, 1.0), num_data=24).double()
    x, y = rows()[0].double(), torch.randn(24, 1, dtype=torch.float64)
    start = torch.randn(4, 5, dtype=torch.float64)
    layout = Layout.of(model)
    found = PotentialGradient(model, layout, start, vmap)((x, y))
    for row, gradient in zip(start, found, strict=True):
        torch.testing.assert_close(PotentialGradient(model, layout, row[None])((x, y))[0], gradient)
        free = row.clone().requires_grad_()
        pieces = layout.split(free)
        scale = pieces["likelihood.scale"].exp()
        mean = x @ pieces["net.weight"].T + pieces["net.bias"]
        log_joint = dist.Normal(mean, scale).log_prob(y).sum()
        log_joint = log_joint + dist.Gamma(3.0, 2.0).log_prob(scale).sum() + pieces["likelihood.scale"].sum()
        log_joint = log_joint - 0.5 * (pieces["net.weight"].square().sum() + pieces["net.bias"].square().sum())
        torch.testing.assert_close(torch.autograd.grad(-log_joint, free)[0], gradient)


@pytest.mark.parametrize("num_chains", [1, 3])
def test_the_priors_value_is_left_out_and_its_gradient_is_not(num_chains: int) -> None:
    """What training would score beside it: the loss lacks it, the gradient is that of the whole potential."""
    model, (x, y) = classifier(), rows()
    start = torch.randn(num_chains, 31)
    gradient = PotentialGradient(model, Layout.of(model), start)
    found = gradient((x, y)).clone()
    parts = gradient._objective.parts
    assert parts is not None and float(parts.divergence) == 0.0
    gradient._step.score.reports_value = True
    torch.testing.assert_close(gradient((x, y)), found)
    parts = gradient._objective.parts
    assert parts is not None and float(parts.divergence) > 0.0


@pytest.mark.parametrize("num_chains", [1, 3])
def test_weights_of_data_are_in_the_gradient(num_chains: int) -> None:
    """Of a weighted regression with one weight: precision times the distance to the posterior mean."""
    model = SupervisedModel(
        nn.Linear(1, 1, bias=False), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=24
    ).double()
    x, y = rows()[0][:, :1].double(), torch.randn(24, 1, dtype=torch.float64)
    weight = torch.rand(24, dtype=torch.float64)
    weight[:5] = 0.0
    precision = 1.0 + (weight[:, None] * x.square()).sum()
    mean = (weight[:, None] * x * y).sum() / precision
    start = torch.randn(num_chains, 1, dtype=torch.float64)
    batches = Batches(model, (x, y, weight))
    gradient = PotentialGradient(model, Layout.of(model), start)(batches.next())
    torch.testing.assert_close(gradient, precision * (start - mean))
