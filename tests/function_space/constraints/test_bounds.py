"""Bounds, by hand and for a linear model whose constrained posterior is known."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.function_space import Bounds, DataBox
from pyrobnn.guides import MeanField
from pyrobnn.objectives import ELBO
from tests.function_space.constraints.constraint_suite import SIX, ConstraintConformance, functions


class TestBounds(ConstraintConformance):
    further_terms = frozenset({"bounds"})

    def constraint(self, **options: Any) -> Bounds:
        return Bounds(**{"lower": 0.4, "upper": 0.6, "inputs": SIX, **options})

    def of_regression(self, **options: Any) -> Bounds:
        return Bounds(**{"lower": 0.3, "upper": None, "inputs": DataBox(-torch.ones(2), torch.ones(2), 16), **options})


def test_distances_to_either_bound() -> None:
    x = torch.tensor([[-2.0, 0.0], [0.0, 0.0], [0.9, 0.0]])
    for lower, upper, expected in (
        (-1.0, 0.5, [1.0, -0.5, 0.4]),
        (None, 0.5, [-2.5, -0.5, 0.4]),
        (-1.0, None, [1.0, -1.0, -1.9]),
    ):
        found = Bounds(lower, upper, x).violation(functions(1, 1.0, 0.0), x)
        torch.testing.assert_close(found, torch.tensor(expected))


def test_wrong_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="both are None"):
        Bounds(None, None, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"lower: expected at most upper=0\.0"):
        Bounds(1.0, 0.0, torch.zeros(1, 2))


def test_the_constrained_posterior_of_a_linear_model() -> None:
    """Where all of its functions are below the bound, an expected violation moves the mean alone.

    A weight w with posterior N(m, s²) and violations ``5 - w`` at x = 1, all positive: the minimum of
    ``KL[q ‖ N(m, s²)] + N α E[5 - w]`` is N(m + N α s², s²). There the objective's gradient is 0, by the mean to 0.5,
    since most of the noise of mirrored draws cancels, and by log s to four standard errors of 40 steps; at N(m, s²) it
    is -N α = -4 by the mean.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 1, generator=generator)
    noise, alpha, one = 0.5, 0.2, torch.ones(1, 1)
    y = 0.8 * x + noise * torch.randn(20, 1, generator=generator)
    precision = 1.0 + float(x.square().sum()) / noise**2
    mean, variance = float((x * y).sum()) / noise**2 / precision, 1 / precision
    model = pb.SupervisedModel(
        nn.Linear(1, 1, bias=False), pb.likelihoods.Normal(noise), dist.Normal(0.0, 1.0), num_data=20
    )
    guide = MeanField(model, init_scale=variance**0.5)
    elbo = ELBO(8, terms=[Bounds(5.0, None, one, alpha)])
    torch.manual_seed(0)
    for shift, expected in ((20 * alpha * variance, 0.0), (0.0, -20 * alpha)):
        gradients = []
        for _ in range(40):
            with torch.no_grad():
                guide.loc.fill_(mean + shift)
            guide.zero_grad()
            elbo.loss_and_grads(model, guide, x, y)
            assert guide.loc.grad is not None and guide.log_scale.grad is not None
            gradients.append([float(guide.loc.grad), float(guide.log_scale.grad)])
        by_mean, by_scale = torch.tensor(gradients).unbind(1)
        assert float(by_mean.mean()) == pytest.approx(expected, abs=0.5)
        assert abs(float(by_scale.mean())) < 4 * float(by_scale.std()) / 40**0.5
