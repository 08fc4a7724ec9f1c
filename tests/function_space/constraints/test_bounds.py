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


@pytest.mark.statistical
def test_the_constrained_posterior_of_a_linear_model() -> None:
    """Where all of its functions are below the bound, an expected violation moves the mean alone.

    A weight w with posterior N(m, s²) and violations ``5 - w`` at x = 1, all positive: the minimum of
    ``KL[q ‖ N(m, s²)] + N α E[5 - w]`` is N(m + N α s², s²). 3,000 steps, the last 1,000 with a falling rate; the mean
    is found to 0.01, which is a tenth of s; s to a tenth, since its gradient is noisier.
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
    guide = MeanField(model, init_scale=0.1)
    elbo = ELBO(8, terms=[Bounds(5.0, None, one, alpha)])
    for lr, epochs in ((1e-2, 1500), (1e-3, 500)):
        pb.fit(model, guide, [(x, y)], epochs=epochs, lr=lr, elbo=elbo, seed=0, progress=False)
    found = guide.marginal("net.weight")
    assert float(found.mean.detach()) == pytest.approx(mean + 20 * alpha * variance, abs=0.01)
    assert float(found.stddev.detach()) == pytest.approx(variance**0.5, rel=0.1)
