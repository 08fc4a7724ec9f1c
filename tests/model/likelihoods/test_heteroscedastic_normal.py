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


def test_images_have_means_and_scales_in_channels() -> None:
    torch.manual_seed(0)
    outputs, y = torch.randn(2, 6, 4, 5), torch.randn(2, 3, 4, 5)
    scale = (1 + outputs[:, 3:].exp()).log() + 0.01
    expected = torch.distributions.Normal(outputs[:, :3], scale).log_prob(y).sum((1, 2, 3))
    for dim in (1, -3):
        likelihood = HeteroscedasticNormal(0.01, dim=dim)
        likelihood.check_targets(outputs, y)
        torch.testing.assert_close(likelihood(outputs).log_prob(y), expected)
        assert likelihood.config()["dim"] == dim


def test_targets_that_fit_along_another_dimension_say_which() -> None:
    with pytest.raises(ValueError, match=r"dim: y of shape \(2, 1, 4, 4\) fits .*pass HeteroscedasticNormal\(dim=1\)"):
        HeteroscedasticNormal().check_targets(torch.zeros(2, 2, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"pass dim= .* \(1 for images"):
        HeteroscedasticNormal().check_targets(torch.zeros(2, 3, 5, 5), torch.zeros(2, 1, 5, 5))


@pytest.mark.parametrize("dim", [0, True, 1.0, None])
def test_a_dimension_that_is_none_is_refused(dim: Any) -> None:
    with pytest.raises(ValueError, match="dim: expected an int"):
        HeteroscedasticNormal(dim=dim)
