"""Counts with further zeros: the suite and its information."""

from __future__ import annotations

from typing import Any

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
