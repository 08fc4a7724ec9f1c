"""SGNHT: the kernel suite, and the thermostat's one purpose: noise of unknown strength."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyrobnn.sampling import SGNHT
from tests.conformance.kernel_suite import COVARIANCE, KernelConformance, run_on_gaussian


class TestSGNHTConformance(KernelConformance):
    """What every kernel must do."""

    gaussian_step = 0.005
    gaussian_steps = 400
    regression_step = 0.002
    regression_steps = 80

    def make_kernel(self, step_size: Any, temperature: float = 1.0) -> SGNHT:
        return SGNHT(step_size, temperature)


@pytest.mark.statistical
def test_the_thermostat_takes_out_gradient_noise() -> None:
    """4,000 chains, gradient noise V of four times what is added: covariance within 10 %, friction a + εV/2."""
    step_size, noise = 0.005, 8.0
    kernel = SGNHT(step_size, diffusion=0.05, coupling=0.003)
    draws, state = run_on_gaussian(kernel, 4_000, 1500, noise=noise)
    found = kernel.statistics(draws, state, 1499)
    assert float((torch.cov(draws.T) / COVARIANCE - 1.0).abs().max()) < 0.1
    assert float(found["friction"].mean()) == pytest.approx(0.05 + 0.5 * step_size * noise**2, rel=0.05)
    assert float(found["kinetic_temperature"].mean()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diffusion": 0.0}, "diffusion: expected a number above 0"),
        ({"coupling": 0.0}, "coupling: expected a positive number"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGNHT(0.1, **options)
