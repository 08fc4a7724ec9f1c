"""Overdispersed counts: the suite, moments, and the sampled information."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import Likelihood, NegativeBinomial
from tests.conformance.likelihood_suite import LikelihoodConformance


def positive(raw: Tensor, floor: float) -> Any:
    return ((1 + raw.exp()).log() + floor).numpy()


class TestNegativeBinomialConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return NegativeBinomial(0.5, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        r = positive(outputs[:, 2:], 0.5)
        return torch.as_tensor(stats.nbinom(r, r / (r + outputs[:, :2].exp().numpy())).logpmf(y.numpy())).sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [*super().refused(y), (ValueError, y + 0.5), (ValueError, y - 100), (TypeError, y.long())]


def test_mean_and_variance() -> None:
    outputs = torch.tensor([[1.0, 0.3], [0.0, -2.0]]).double()
    likelihood = NegativeBinomial()
    found = likelihood.distribution(likelihood.parameters_of(outputs))
    mean, r = outputs[:, :1].exp(), likelihood.positive(outputs[:, 1:])
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.variance, mean + mean.square() / r)


@pytest.mark.parametrize("total_count", [30.0, 1e3, 1e6])
def test_a_large_total_count_keeps_the_digits_of_single_precision(total_count: float) -> None:
    """Near Poisson; the difference of two logarithms of Γ would be off by 0.5 for a million."""
    counts = torch.tensor([0.0, 2.0, 7.0, 30.0])
    each = NegativeBinomial().distribution(
        {"total_count": torch.full((4,), total_count), "logits": torch.full((4,), math.log(3.0 / total_count))}
    )
    expected = stats.nbinom(total_count, total_count / (total_count + 3.0)).logpmf(counts.numpy())
    torch.testing.assert_close(each.log_prob(counts).double(), torch.as_tensor(expected), rtol=2e-6, atol=2e-5)
