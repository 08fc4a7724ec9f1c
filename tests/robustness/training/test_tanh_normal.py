"""The distribution of perturbations: density and entropy against torch, quadrature and draws."""

from __future__ import annotations

import torch
from scipy import integrate, stats
from torch import Tensor

from pyrobnn.robustness.training import TanhNormal
from tests.conformance.monte_carlo import z_of_mean

EPSILON = 0.2
LOC = torch.tensor([0.0, 0.7, -1.5, 3.0], dtype=torch.float64)
RAW_SCALE = torch.tensor([0.0, -2.0, 0.5, -1.0], dtype=torch.float64)
Z = 4.0


def distribution() -> TanhNormal:
    return TanhNormal(LOC, RAW_SCALE, EPSILON)


def by_torch() -> torch.distributions.TransformedDistribution:
    normal = torch.distributions.Normal(LOC, torch.nn.functional.softplus(RAW_SCALE))
    transforms = [torch.distributions.TanhTransform(), torch.distributions.AffineTransform(0.0, EPSILON)]
    return torch.distributions.TransformedDistribution(normal, transforms)


def test_the_density_is_that_of_the_transformed_normal() -> None:
    torch.manual_seed(0)
    noise = torch.randn(50, 4, dtype=torch.float64).clamp(-2.0, 2.0)
    found = distribution()
    torch.testing.assert_close(found.negative_log_prob(noise), -by_torch().log_prob(found.rsample(noise)))


def test_perturbations_stay_in_the_ball() -> None:
    torch.manual_seed(0)
    assert float(distribution().rsample(100.0 * torch.randn(1000, 4, dtype=torch.float64)).abs().max()) <= EPSILON


def test_the_entropy_is_the_integral_of_the_density() -> None:
    """Adaptive integration of ``-p log p`` over the normal variable."""
    scale = torch.nn.functional.softplus(RAW_SCALE)
    for index, found in enumerate(distribution().entropy()):
        one = TanhNormal(LOC[index], RAW_SCALE[index], EPSILON)

        def integrand(r: float, one: TanhNormal = one) -> float:
            noise = torch.tensor(r, dtype=torch.float64)
            return float(one.negative_log_prob(noise)) * stats.norm.pdf(r)

        expected, _ = integrate.quad(integrand, -12.0, 12.0, points=[float(-LOC[index] / scale[index])], limit=400)
        assert abs(float(found) - expected) < 1e-6


def test_draws_estimate_the_entropy_and_its_gradient() -> None:
    """20,000 draws of both estimators, and of the gradient of the one that training takes."""
    torch.manual_seed(0)
    noise = torch.randn(20_000, 4, dtype=torch.float64)
    loc, raw_scale = LOC.clone().requires_grad_(), RAW_SCALE.clone().requires_grad_()
    exact = TanhNormal(loc, raw_scale, EPSILON).entropy()
    known = torch.autograd.grad(exact.sum(), (loc, raw_scale))
    assert z_of_mean(distribution().negative_log_prob(noise), exact.detach()) < Z
    assert z_of_mean(distribution().entropy_at(noise), exact.detach()) < Z

    def slopes(parameters: tuple[Tensor, Tensor], r: Tensor) -> Tensor:
        return TanhNormal(*parameters, EPSILON).entropy_at(r).sum()

    found = torch.func.vmap(torch.func.grad(slopes), in_dims=(None, 0))((LOC, RAW_SCALE), noise)
    for draws, expected in zip(found, known, strict=True):
        assert z_of_mean(draws, expected) < Z


def test_what_has_a_closed_form_lowers_the_variance() -> None:
    torch.manual_seed(0)
    noise = torch.randn(20_000, 4, dtype=torch.float64)[:, :2]
    found = TanhNormal(LOC[:2], RAW_SCALE[:2] - 1.0, EPSILON)
    assert bool((found.entropy_at(noise).var(0) < found.negative_log_prob(noise).var(0)).all())


def test_far_from_zero_nothing_overflows() -> None:
    loc = torch.tensor([-200.0, 200.0], requires_grad=True)
    value = TanhNormal(loc, torch.zeros(2), EPSILON).entropy_at(torch.zeros(2))
    value.sum().backward()
    assert bool(value.isfinite().all()) and torch.equal(loc.grad, torch.tensor([2.0, -2.0]))
