"""SGLD: the kernel suite, the law of one step, the stationary law of the discretization."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyrobnn.sampling import SGLD, sample
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.kernel_suite import COVARIANCE, MEAN, KernelConformance, run_on_gaussian
from tests.conformance.monte_carlo import Z, z_of_mean


class TestSGLDConformance(KernelConformance):
    """What every kernel must do."""

    gaussian_step = 0.02
    regression_step = 0.006

    def make_kernel(self, step_size: Any, temperature: float = 1.0) -> SGLD:
        return SGLD(step_size, temperature)


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_one_step_is_a_langevin_step(temperature: float) -> None:
    """400 chains from one point, all data: mean θ - (ε/2) ∇U and variance εT; z-scores below 5.

    The gradient is the closed form's, precision times distance from the posterior mean.
    """
    data = ConjugateRegression()
    values = torch.tensor([0.4, -0.2, 0.1, 0.3], dtype=torch.float64)
    start = {"net.weight": values[:-1].unsqueeze(0), "net.bias": values[-1:]}
    step_size = 0.01
    guide = sample(
        data.model(),
        (data.x, data.y),
        kernel=SGLD(step_size, temperature),
        num_samples=1,
        num_chains=400,
        init=start,
        seed=3,
        progress=False,
    )
    draws = guide.flat_draws(torch.arange(400))
    mean = values - 0.5 * step_size * data.precision @ (values - data.mean)
    assert z_of_mean(draws, mean) < Z
    products = torch.einsum("ki,kj->kij", draws - mean, draws - mean)
    assert z_of_mean(products, step_size * temperature * torch.eye(4, dtype=torch.float64)) < Z


@pytest.mark.statistical
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_stationary_covariance_of_the_discretization(noise: float) -> None:
    """20,000 chains at a large step: T Λ⁻¹ (I - εΛ/4)⁻¹ and the share of gradient noise; z-scores below 5."""
    step_size = 0.1
    draws, _ = run_on_gaussian(SGLD(step_size), 20_000, 400, noise=noise)
    precision = torch.linalg.inv(COVARIANCE)
    shrunk = torch.linalg.inv(torch.eye(2, dtype=torch.float64) - 0.25 * step_size * precision)
    expected = COVARIANCE @ shrunk * (1.0 + 0.25 * step_size * noise**2)
    centered = draws - MEAN
    assert z_of_mean(draws, MEAN) < Z
    assert z_of_mean(torch.einsum("ki,kj->kij", centered, centered), expected) < Z
