"""Counts: the suite and its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import Likelihood, Poisson
from tests.conformance.likelihood_suite import LikelihoodConformance


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
