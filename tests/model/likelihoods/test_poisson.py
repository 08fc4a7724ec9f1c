"""Counts: the suite and its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import Likelihood, NegativeBinomial, Poisson, ZeroInflatedPoisson
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.conformance.monte_carlo import Z, z_of_mean


class TestPoissonConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return Poisson(**options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        return torch.as_tensor(stats.poisson(outputs.exp().numpy()).logpmf(y.numpy())).sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [*super().refused(y), (TypeError, y.long()), (ValueError, y + 0.5), (ValueError, y * math.nan)]


@pytest.mark.parametrize("wrong", [-1.0, 0.5])
def test_counts_are_non_negative_whole_numbers(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"y: Poisson expects floating-point counts"):
        Poisson().check_targets(torch.zeros(3, 4), torch.full((3, 4), wrong))


@pytest.mark.parametrize("count", [0.0, 3.0])
def test_a_rate_that_is_too_small_for_a_number_has_a_probability_and_a_gradient(count: float) -> None:
    """In single precision exp(-200) is 0, of which neither would be finite."""
    outputs = torch.tensor([[-200.0], [-20.0]], requires_grad=True)
    found = Poisson()(outputs).log_prob(torch.full((2, 1), count))
    expected = count * outputs.detach() - outputs.detach().exp() - math.lgamma(count + 1.0)
    torch.testing.assert_close(found.detach(), expected.squeeze(1))
    found.sum().backward()
    torch.testing.assert_close(outputs.grad, count - outputs.detach().exp())


@pytest.mark.parametrize("log_rate", [27.0, 28.5, 45.0, 80.0])
def test_counts_of_large_rates_are_drawn(log_rate: float) -> None:
    """torch's are -2^63 for rates above that; 10,000 draws of each, mean and variance within z = 5."""
    torch.manual_seed(0)
    each = Poisson().distribution({"log_rate": torch.tensor([log_rate], dtype=torch.float64)})
    rate = math.exp(log_rate)
    scaled = (each.sample((10_000,)) - rate) / math.sqrt(rate)
    if log_rate < 70.0:  # beyond, the spread is below the digits of the rate
        assert z_of_mean(scaled, torch.zeros(1).double()) < Z
        assert z_of_mean(scaled.square(), torch.ones(1).double()) < Z
    assert bool((scaled.abs() * math.sqrt(rate) < 1e-3 * rate).all())


def test_counts_of_other_likelihoods_are_not_negative_either() -> None:
    torch.manual_seed(0)
    outputs = torch.tensor([[80.0, 0.0], [50.0, 2.0], [1.0, 1.0]])
    for likelihood in (NegativeBinomial(), ZeroInflatedPoisson()):
        drawn = likelihood.distribution(likelihood.parameters_of(outputs)).sample((200,))
        assert drawn.shape == (200, 3, 1)
        assert bool((drawn >= 0).all())
        assert float(drawn[:, 0].max()) > 1e30
