"""Gamma targets: the suite and its information."""

from __future__ import annotations

from typing import Any

import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import Gamma, Likelihood
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.model.likelihoods.informations import assert_information, outputs_of


def positive(raw: Tensor, floor: float) -> Any:
    return ((1 + raw.exp()).log() + floor).numpy()


class TestGammaConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return Gamma(0.5, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        alpha = positive(outputs[:, 2:], 0.5)
        return torch.as_tensor(stats.gamma(alpha, scale=outputs[:, :2].exp().numpy() / alpha).logpdf(y.numpy())).sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        wrong = y.clone()
        wrong[3, 0] = -1.0
        return [*super().refused(y), (TypeError, y.long()), (ValueError, wrong), (ValueError, 0 * y)]


def test_information_in_closed_form() -> None:
    assert_information(Gamma(0.5), outputs_of(4))


def test_the_mean_is_the_exponential_of_the_first_output() -> None:
    outputs = outputs_of(4)
    likelihood = Gamma()
    found = likelihood.distribution(likelihood.parameters_of(outputs))
    torch.testing.assert_close(found.mean, outputs[:, :2].exp())
    torch.testing.assert_close(found.variance, found.mean.square() / likelihood.positive(outputs[:, 2:]))
