"""Concrete distributions: densities by quadrature, the identity of scaled noise, low temperatures, one-hot draws."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrobnn.distributions.concrete import (
    BinaryConcrete,
    Concrete,
    binary_log_density,
    concrete_log_density,
    gumbel,
    logistic,
    relaxed_of,
    to_interval,
    to_simplex,
)
from tests.conformance.monte_carlo import Z, z_of_mean

SETTINGS = [(1.0, 1.0), (0.7, 1.0), (0.5, 0.6), (2.0, 0.8)]
each_setting = pytest.mark.parametrize(("tau", "beta"), SETTINGS)


def logits(num_choices: int) -> Tensor:
    return torch.tensor([0.3, -0.9, 0.5][:num_choices], dtype=torch.float64)


def density_by_quadrature(log_value: Tensor, theta: Tensor, tau: float, beta: float) -> Tensor:
    """Density of ``log α_k - log α_K`` by integrating out the common level of the Gumbels.

    With ``u_k = (θ_k + β g_k) / τ``, the differences ``d_k = u_k - u_K`` have the density ``∫ f_K(u) Π f_k(u + d_k)
    du``.
    """
    u = torch.linspace(-60.0, 60.0, 60_001, dtype=torch.float64)

    def noise_density(level: Tensor, k: int) -> Tensor:
        g = (tau * level - theta[k]) / beta
        return (-g - torch.exp(-g)).exp() * tau / beta

    product = noise_density(u, len(theta) - 1)
    for k in range(len(theta) - 1):
        product = product * noise_density(u + (log_value[k] - log_value[-1]), k)
    return torch.trapezoid(product, u)


@each_setting
@pytest.mark.parametrize("num_choices", [2, 3])
def test_density_of_scaled_noise_is_that_by_quadrature(num_choices: int, tau: float, beta: float) -> None:
    """Relative error below 1e-5 at twenty points; logits θ/β and temperature τ/β."""
    theta = logits(num_choices)
    generator = torch.Generator().manual_seed(0)
    for point in torch.randn(20, num_choices, generator=generator, dtype=torch.float64) * 2.0:
        log_value = point.log_softmax(-1)
        found = concrete_log_density(log_value, theta / beta, tau / beta).exp()
        torch.testing.assert_close(found, density_by_quadrature(log_value, theta, tau, beta), rtol=1e-5, atol=0.0)


@each_setting
def test_normalizer_on_the_simplex(tau: float, beta: float) -> None:
    """Densities of α itself integrate to one (1e-5), over the interval for K = 2 and the triangle for K = 3."""
    d = torch.linspace(-60.0, 60.0, 20_001, dtype=torch.float64)
    log_value = torch.stack([d, torch.zeros_like(d)], -1).log_softmax(-1)
    interval = Concrete(tau / beta, logits(2) / beta).log_prob(log_value.exp().clamp_min(1e-300)) + log_value.sum(-1)
    assert float(torch.trapezoid(interval.exp(), d)) == pytest.approx(1.0, abs=1e-5)
    grid = torch.linspace(-50.0, 50.0, 1001, dtype=torch.float64)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    log_value = torch.stack([first, second, torch.zeros_like(first)], -1).log_softmax(-1)
    # The simplex's measure in these coordinates is the product of all three elements.
    triangle = Concrete(tau / beta, logits(3) / beta).log_prob(log_value.exp().clamp_min(1e-300)) + log_value.sum(-1)
    inner = torch.trapezoid(triangle.exp(), grid)
    assert float(torch.trapezoid(inner, grid)) == pytest.approx(1.0, abs=1e-5)


@each_setting
def test_a_gate_is_a_choice_of_two(tau: float, beta: float) -> None:
    theta = torch.tensor([0.8, 0.0], dtype=torch.float64)
    logit = torch.linspace(-6.0, 6.0, 13, dtype=torch.float64)
    both = torch.stack([logit, torch.zeros_like(logit)], -1).log_softmax(-1)
    expected = concrete_log_density(both, theta / beta, tau / beta)
    torch.testing.assert_close(binary_log_density(logit, theta[0] / beta, tau / beta), expected)


def test_densities_agree_with_torch() -> None:
    theta, temperature = logits(3), torch.tensor(0.7, dtype=torch.float64)
    values = torch.randn(50, 3, dtype=torch.float64).softmax(-1)
    expected = dist.RelaxedOneHotCategorical(temperature, logits=theta, validate_args=False).log_prob(values)
    torch.testing.assert_close(Concrete(temperature, theta).log_prob(values), expected)
    gates = torch.rand(50, 3, dtype=torch.float64)
    expected = dist.RelaxedBernoulli(temperature, logits=theta, validate_args=False).log_prob(gates)
    torch.testing.assert_close(BinaryConcrete(temperature, theta).log_prob(gates), expected)


def test_scaled_noise_is_concrete_with_scaled_logits_and_temperature() -> None:
    theta, tau, beta = torch.randn(7, 4, dtype=torch.float64), 0.8, 0.5
    noise = gumbel(theta, theta.shape)
    scaled = to_simplex((theta + beta * noise) / tau)
    torch.testing.assert_close(scaled, to_simplex((theta / beta + noise) / (tau / beta)))
    noise = logistic(theta, theta.shape)
    torch.testing.assert_close(
        to_interval((theta + beta * noise) / tau), to_interval((theta / beta + noise) / (tau / beta))
    )


@pytest.mark.statistical
def test_largest_elements_are_categorical() -> None:
    """40,000 draws; z-scores below 5."""
    torch.manual_seed(3)
    for temperature in (0.3, 3.0):
        choice = Concrete(temperature, logits(3))
        largest = torch.nn.functional.one_hot(choice.sample((40_000,)).argmax(-1), 3).double()
        assert z_of_mean(largest, choice.probs) < Z
        gate = BinaryConcrete(temperature, logits(3))
        assert z_of_mean((gate.sample((40_000,)) > 0.5).double(), gate.probs) < Z


@pytest.mark.statistical
def test_noise_has_the_moments_it_should() -> None:
    """100,000 draws; z-scores below 5."""
    torch.manual_seed(4)
    like = torch.zeros((), dtype=torch.float64)
    noise = gumbel(like, torch.Size((100_000, 1)))
    euler = 0.5772156649015329
    assert z_of_mean(noise, euler) < Z
    assert z_of_mean((noise - euler).square(), math.pi**2 / 6) < Z
    noise = logistic(like, torch.Size((100_000, 1)))
    assert z_of_mean(noise, 0.0) < Z
    assert z_of_mean(noise.square(), math.pi**2 / 3) < Z


@pytest.mark.parametrize("hard", [False, True])
def test_densities_stay_finite_where_values_underflow(hard: bool) -> None:
    torch.manual_seed(5)
    theta = torch.randn(200, 5, requires_grad=True)
    choice = Concrete(0.01, theta, hard)
    value = choice.rsample()
    assert bool((value == 0).any())  # in single precision exp underflows
    ratio = choice.log_prob(value) - Concrete(0.5, torch.zeros(5)).log_prob(value)
    (slope,) = torch.autograd.grad(ratio.sum(), theta)
    assert bool(ratio.isfinite().all())
    assert bool(slope.isfinite().all())
    gate = BinaryConcrete(0.01, theta, hard)
    value = gate.rsample()
    assert bool((value == 0).any())
    assert bool((value == 1).any())
    assert bool(gate.log_prob(value).isfinite().all())


def test_one_hot_draws_have_the_gradient_of_relaxed_ones() -> None:
    theta = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(6, 4, dtype=torch.float64)
    for transform, is_binary in ((to_simplex, False), (to_interval, True)):
        soft, hard = transform(theta), transform(theta, True)
        (expected,) = torch.autograd.grad((soft * direction).sum(), theta)
        (found,) = torch.autograd.grad((hard * direction).sum(), theta)
        torch.testing.assert_close(found, expected)
        assert bool(((hard == 0) | (hard == 1)).all())
        torch.testing.assert_close(relaxed_of(hard), relaxed_of(soft))
        if not is_binary:
            assert torch.equal(hard.argmax(-1), soft.argmax(-1))
            assert bool((hard.sum(-1) == 1).all())


def test_values_that_remember_nothing_are_held_off_the_boundary() -> None:
    assert bool(relaxed_of(torch.tensor([0.0, 1.0])).isfinite().all())
    assert bool(relaxed_of(torch.tensor([0.0, 1.0]), binary=True).isfinite().all())
    torch.testing.assert_close(relaxed_of(torch.tensor([0.25])), torch.tensor([0.25]).log())


def test_expanding_broadcasts() -> None:
    assert Concrete(1.0, logits(3)).expand((5,)).sample().shape == (5, 3)
    assert BinaryConcrete(1.0, logits(3)).expand((5, 3)).sample((2,)).shape == (2, 5, 3)
