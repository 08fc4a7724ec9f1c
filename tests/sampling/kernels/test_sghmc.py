"""SGHMC: the kernel suite, the stationary law of the discretization, its limits, gradient noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyrobnn.sampling import SGHMC, SGLD
from tests.conformance.kernel_suite import COVARIANCE, MEAN, KernelConformance, run_on_gaussian
from tests.conformance.monte_carlo import Z, z_of_mean


class TestSGHMCConformance(KernelConformance):
    """What every kernel must do."""

    gaussian_step = 0.005
    gaussian_steps = 300
    regression_step = 0.002
    regression_steps = 80

    def make_kernel(self, step_size: Any, temperature: float = 1.0) -> SGHMC:
        return SGHMC(step_size, temperature)


@pytest.mark.statistical
@pytest.mark.parametrize("friction", [0.05, 0.5, 1.0])
def test_stationary_covariance_of_the_discretization(friction: float) -> None:
    """20,000 chains at a large step: T Λ⁻¹ (I - εΛ / (4 - 2α))⁻¹ whatever the friction; z-scores below 5."""
    step_size = 0.05
    draws, _ = run_on_gaussian(SGHMC(step_size, friction=friction), 20_000, 600)
    precision = torch.linalg.inv(COVARIANCE)
    shrunk = torch.linalg.inv(torch.eye(2, dtype=torch.float64) - step_size / (4.0 - 2.0 * friction) * precision)
    centered = draws - MEAN
    assert z_of_mean(torch.einsum("ki,kj->kij", centered, centered), COVARIANCE @ shrunk) < Z


def test_full_friction_is_sgld_at_twice_the_step() -> None:
    flat, gradient, kick = torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3)
    found, expected = flat.clone(), flat.clone()
    kernel = SGHMC(0.1, 0.7, friction=1.0)
    kernel.update(found, gradient.clone(), kernel.start(flat, 0), 0, kick.clone)
    SGLD(0.2, 0.7).update(expected, gradient.clone(), {}, 0, kick.clone)
    torch.testing.assert_close(found, expected)


@pytest.mark.statistical
def test_an_estimate_of_the_gradient_noise_takes_it_out() -> None:
    """8,000 chains; noise of variance V acts as β = εV/2: taken out the covariance is right, else 1 + β/α of it."""
    step_size, noise, friction = 0.005, 4.0, 0.1
    share = 0.5 * step_size * noise**2
    for taken, factor in ((share, 1.0), (0.0, 1.0 + share / friction)):
        kernel = SGHMC(step_size, friction=friction, gradient_noise=taken)
        draws, state = run_on_gaussian(kernel, 8_000, 400, noise=noise)
        assert float((torch.cov(draws.T) / (factor * COVARIANCE) - 1.0).abs().max()) < 0.06
        temperature = kernel.statistics(draws, state, 399)["kinetic_temperature"]
        assert float(temperature.mean()) == pytest.approx(factor, rel=0.05)


@pytest.mark.statistical
def test_kinetic_temperature() -> None:
    """20,000 chains of two velocities: standard error 0.7 % of T."""
    kernel = SGHMC(0.001, 0.5)
    draws, state = run_on_gaussian(kernel, 20_000, 100)
    assert float(kernel.statistics(draws, state, 99)["kinetic_temperature"].mean()) == pytest.approx(0.5, rel=0.035)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"friction": 0.0}, "friction: expected a number above 0"),
        ({"friction": 1.5}, "friction: expected a number above 0"),
        ({"gradient_noise": 0.1}, "gradient_noise: expected a number from 0 to below the friction 0.1"),
        ({"gradient_noise": -0.1}, "gradient_noise: expected a number of at least 0"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGHMC(0.1, **options)
