"""Counts with further zeros: the suite and its information."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import Likelihood, ZeroInflatedPoisson
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.model.likelihoods.informations import assert_information, outputs_of


class TestZeroInflatedPoissonConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return ZeroInflatedPoisson(**options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        gate = outputs[:, 2:].sigmoid()
        counts = torch.as_tensor(stats.poisson(outputs[:, :2].exp().numpy()).pmf(y.numpy()))
        return torch.as_tensor(((1 - gate) * counts + gate * (y == 0)).log()).sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [*super().refused(y), (ValueError, y + 0.5), (ValueError, y - 100), (TypeError, y.long())]


def test_information_in_closed_form() -> None:
    """Of two targets: log rates are outputs 0 and 1, logits 2 and 3."""
    assert_information(ZeroInflatedPoisson(), outputs_of(4))


@pytest.mark.parametrize(
    ("log_rate", "logit", "count", "expected", "slopes"),
    [
        (-200.0, 0.0, 3.0, -600.0 - math.log(6.0) - math.log(2.0), (3.0, -0.5)),
        (-200.0, 0.0, 0.0, 0.0, (0.0, 0.0)),
        (100.0, 0.0, 0.0, -math.log(2.0), (0.0, 0.5)),
        (0.0, -200.0, 0.0, -1.0, (-1.0, 0.0)),
        (0.0, 200.0, 2.0, -201.0 - math.log(2.0), (1.0, -1.0)),
    ],
)
def test_rates_and_gates_at_the_ends_of_single_precision(
    log_rate: float, logit: float, count: float, expected: float, slopes: tuple[float, float]
) -> None:
    outputs = torch.tensor([[log_rate, logit]], requires_grad=True)
    found = ZeroInflatedPoisson()(outputs).log_prob(torch.tensor([[count]]))
    torch.testing.assert_close(found.detach(), torch.tensor([expected]))
    found.sum().backward()
    torch.testing.assert_close(outputs.grad, torch.tensor([slopes]))
