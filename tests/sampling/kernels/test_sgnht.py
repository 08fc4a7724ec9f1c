"""SGNHT: the kernel suite, and the thermostat's one purpose: noise of unknown strength."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyrobnn.sampling import SGNHT
from tests.conformance.kernel_suite import COVARIANCE, KernelConformance, fresh, run_on_gaussian


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


@pytest.mark.statistical
@pytest.mark.parametrize("distance", [0.0, 1.0, 30.0])
def test_the_heat_of_a_far_start_is_gone_after_warmup(distance: float) -> None:
    """A Gaussian with correlated inputs, 400 chains of 1,500 steps after 600 of warmup, started up to 700 sd away.

    Variances along the principal axes are those of the scheme, known in closed form, within 4 standard errors over
    chains and within 3 %. A thermostat that keeps the heat gives 0.93 of them from 20 sd away.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    x[:, 1] += 0.9 * x[:, 0]
    precision = x.T @ x / 0.25 + torch.eye(3)
    eigenvalues, axes = torch.linalg.eigh(precision)
    step_size = float(1.0 / (20.0 * eigenvalues.max()))
    kernel, warmup = SGNHT(step_size, diffusion=0.1), 600
    flat = (distance * torch.tensor([1.2, -1.1, 0.6], dtype=torch.float64)).repeat(400, 1)
    torch.manual_seed(3)
    state, source = kernel.start(flat, warmup), fresh(flat)
    squares = torch.zeros_like(flat)
    for step in range(warmup + 1500):
        kernel.update(flat, flat @ precision, state, step, source)
        if step >= warmup:
            squares += (flat @ axes).square() / 1500
    known = 1.0 / (eigenvalues * (1.0 - step_size * eigenvalues / (4.0 - 2.0 * 0.1)))
    ratio = squares / known
    error = ratio.std(0) / 400**0.5
    z = (ratio.mean(0) - 1.0) / error
    assert float(error.max()) < 0.01
    assert float(z.abs().max()) < 4.0, (ratio.mean(0), z)
    assert float((ratio.mean(0) - 1.0).abs().max()) < 0.03


def test_friction_is_held_and_then_averaged_in_warmup() -> None:
    kernel, flat = SGNHT(0.005), torch.full((2, 3), 5.0)
    state, source = kernel.start(flat, 12), fresh(flat, torch.Generator().manual_seed(0))
    frictions = []
    for step in range(12):
        kernel.update(flat, flat.clone(), state, step, source)
        frictions.append(state["friction"].clone())
    assert all(torch.equal(friction, torch.full((2, 1), 0.1)) for friction in frictions[:4])
    assert not torch.equal(frictions[4], frictions[3])
    assert torch.equal(frictions[11], state["mean_friction"])
    assert (frictions[11] < torch.cat(frictions[6:11], 1).max(1, keepdim=True).values).all()


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
