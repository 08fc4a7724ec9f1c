"""Laplace noise: the suite and its information."""

from __future__ import annotations

from typing import Any

import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import Laplace, Likelihood
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.model.likelihoods.informations import assert_information, outputs_of


def positive(raw: Tensor, floor: float) -> Any:
    return ((1 + raw.exp()).log() + floor).numpy()


class TestLaplaceConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return Laplace(0.01, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        first, raw = outputs[:, :2].numpy(), outputs[:, 2:]
        return torch.as_tensor(stats.laplace(first, positive(raw, 0.01)).logpdf(y.numpy())).sum(-1)


def test_information_in_closed_form() -> None:
    assert_information(Laplace(), outputs_of(4))
