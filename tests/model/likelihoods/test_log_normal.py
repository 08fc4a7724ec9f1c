"""Log-normal targets: the suite, its information, targets outside the support."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.distributions import log_normal
from pyrobnn.model.likelihoods import Likelihood, LogNormal
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.model.likelihoods.informations import assert_information, outputs_of


def positive(raw: Tensor, floor: float) -> Any:
    return ((1 + raw.exp()).log() + floor).numpy()


class TestLogNormalConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return LogNormal(0.01, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        raw = outputs[:, 2:]
        return torch.as_tensor(
            stats.lognorm(positive(raw, 0.01), scale=outputs[:, :2].exp().numpy()).logpdf(y.numpy())
        ).sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        wrong = y.clone()
        wrong[3, 0] = -1.0
        return [*super().refused(y), (TypeError, y.long()), (ValueError, wrong), (ValueError, 0 * y)]


def test_information_in_closed_form() -> None:
    assert_information(LogNormal(), outputs_of(4))


def test_targets_outside_of_the_support_are_counted_by_row() -> None:
    y = torch.ones(6, 2)
    y[1, 0] = y[1, 1] = y[4, 1] = -3.0
    with pytest.raises(ValueError, match=r"^y: LogNormal expects positive .*2 of 6 rows do not fit, row 1 first"):
        LogNormal().check_targets(torch.zeros(6, 4), y)
    y[4, 0] = float("nan")
    with pytest.raises(ValueError, match=r"2 of 6 rows do not fit"):
        LogNormal(missing=True).check_targets(torch.zeros(6, 4), y)
    LogNormal(missing=True).check_targets(torch.zeros(6, 4), y.masked_fill(y < 0, float("nan")))


def test_it_has_no_location_and_scale() -> None:
    with pytest.raises(ValueError, match="LogNormal have no location and scale"):
        LogNormal().rescaled(LogNormal().parameters_of(torch.zeros(2, 2)), torch.tensor(1.0), torch.tensor(2.0))


def test_a_variance_of_a_factor_zero_and_an_infinite_one_is_their_product() -> None:
    """``e^(2 μ + σ²)`` is 0 and ``e^(σ²) - 1`` infinite in single precision."""
    found = log_normal.LogNormal(torch.tensor([-1e4, -100.0, 0.3]), torch.tensor([100.0, 10.0, 1e-3]))
    expected = torch.tensor([1.0, 1.0, math.exp(0.6 + 1e-6) * math.expm1(1e-6)])
    torch.testing.assert_close(found.variance, expected)
