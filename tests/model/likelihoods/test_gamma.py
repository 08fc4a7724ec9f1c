"""Gamma targets: the suite and its information."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import special, stats
from torch import Tensor

from pyrobnn.model.likelihoods import Gamma, Likelihood
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.conformance.monte_carlo import Z, z_of_mean
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


@pytest.mark.parametrize(
    ("log_mean", "raw", "y"),
    [
        (100.0, 0.0, 1.0),
        (1e4, -1e4, 1.0),
        (1e4, 1e4, 1.0),
        (-80.0, 0.0, 1.0),
        (-80.0, -100.0, 1.0),
        (0.0, 1e4, 1.0001),
        (0.0, 100.0, 0.9),
        (0.0, 20.0, 1.2),
    ],
)
def test_means_and_concentrations_at_the_ends_of_single_precision(log_mean: float, raw: float, y: float) -> None:
    """Against the density and its derivatives in double precision; e^88 is the largest of single precision."""
    outputs = torch.tensor([[log_mean, raw]], requires_grad=True)
    target = torch.tensor([[y]])
    found = Gamma()(outputs).log_prob(target)
    found.sum().backward()
    y = float(target)
    alpha = (raw if raw > 50.0 else math.log1p(math.exp(raw))) + 1e-3
    d = math.log(y) - log_mean
    wanted = alpha * (math.log(alpha) - log_mean) + (alpha - 1.0) * math.log(y) - alpha * math.exp(d)
    slope = 1.0 + d - math.exp(d) + math.log(alpha) - float(special.digamma(alpha))
    of_raw = slope / (1.0 + math.exp(-raw)) if raw > -50.0 else slope * math.exp(raw)
    torch.testing.assert_close(float(found.detach()), wanted - math.lgamma(alpha), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(outputs.grad, torch.tensor([[alpha * math.expm1(d), of_raw]]), rtol=5e-4, atol=1e-6)


def test_a_density_below_all_numbers_is_minus_infinity() -> None:
    outputs = torch.tensor([[-1e4, 0.0], [-100.0, -1e4], [0.0, 0.0]], requires_grad=True)
    found = Gamma()(outputs).log_prob(torch.ones(3, 1))
    assert found.tolist()[:2] == [-math.inf, -math.inf]
    assert math.isfinite(found[2].item())
    found.sum().backward()
    assert outputs.grad is not None and not bool(outputs.grad.isnan().any())


@pytest.mark.statistical
def test_draws_are_of_the_distribution_where_its_rate_is_no_number() -> None:
    """20,000 draws of concentration 2 about e^-87, of which the rate is too large: mean within z = 5."""
    torch.manual_seed(0)
    each = Gamma(0.0).distribution({"concentration": torch.tensor([2.0]), "log_mean": torch.tensor([-80.0])})
    found = each.sample((20_000,))
    assert z_of_mean(found.double() * math.exp(80.0), torch.ones(1, dtype=torch.float64)) < Z
    tiny = Gamma(0.0).distribution({"concentration": torch.tensor([2.0]), "log_mean": torch.tensor([-200.0])})
    assert bool((tiny.sample((100,)) > 0).all())
