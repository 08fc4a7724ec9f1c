"""Gaussian noise that depends on the input: the suite, the floor, and what outputs it needs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import HeteroscedasticNormal, Likelihood
from tests.conformance.likelihood_suite import LikelihoodConformance


class TestHeteroscedasticNormalConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return HeteroscedasticNormal(0.01, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        mean, raw = outputs.numpy()[:, :2], outputs[:, 2:]
        scale = (1 + raw.exp()).log().numpy() + 0.01
        return torch.as_tensor(stats.norm(mean, scale).logpdf(y.numpy())).sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [
            *super().refused(y),
            (TypeError, y.long()),
            (ValueError, y * math.nan),
            (ValueError, torch.cat([y, y], 1)),
        ]


@pytest.mark.parametrize("floor", [-0.1, math.nan])
def test_a_negative_floor_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor: expected a standard deviation of at least 0"):
        HeteroscedasticNormal(floor)


def test_the_floor_bounds_the_scale() -> None:
    scale = HeteroscedasticNormal(0.1).parameters_of(torch.tensor([[0.0, -100.0]]))["scale"]
    assert scale.item() == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_means_and_scales_need_an_even_number_of_outputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"net: HeteroscedasticNormal expects outputs \[B, 2 D\].*two outputs per target"
    ):
        HeteroscedasticNormal()(torch.zeros(shape))
