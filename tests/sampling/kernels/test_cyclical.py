"""Cycles: which steps have noise and give draws, the step sizes, both modes of a mixture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrobnn.core.schedules import PolynomialDecay
from pyrobnn.sampling import SGLD, SGNHT, Cyclical, StochasticGradientKernel
from tests.conformance.kernel_suite import fresh


def test_exploration_is_gradient_descent_and_sampling_is_the_kernel() -> None:
    kernel = Cyclical(SGLD(0.4, temperature=0.5), cycle_length=10, exploration=0.6)
    assert [kernel.collects(step) for step in range(20)] == ([False] * 6 + [True] * 4) * 2
    gradient, kick = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.3, 0.7]])
    for step in range(20):
        flat = torch.zeros(1, 2)
        kernel.update(flat, gradient.clone(), {}, step, kick.clone)
        size = 0.2 * (1.0 + math.cos(math.pi * (step % 10) / 10))
        expected = -0.5 * size * gradient + (kernel.collects(step) * (size * 0.5) ** 0.5) * kick
        torch.testing.assert_close(flat, expected)
        assert kernel.statistics(flat, {}, step)["cycle"].tolist() == [step // 10]


def slope(flat: Tensor) -> Tensor:
    """Gradient of the potential of two modes of equal weight at -2 and 2 with standard deviation 0.5."""
    return (flat - 2.0 * (8.0 * flat).tanh()) / 0.25


@pytest.mark.statistical
def test_cycles_find_both_modes_where_one_step_size_does_not() -> None:
    """1,000 chains from one mode, at the end of the fifth cycle; the barrier is 7 nats high.

    Half of them in each mode (standard error 1.6 %), with the modes' own standard deviation (2.2 %, and 5 % for the
    steps that are not yet small).
    """

    def final(kernel: StochasticGradientKernel) -> Tensor:
        flat = torch.full((1000, 1), 2.0, dtype=torch.float64)
        for step in range(200):
            kernel.update(flat, slope(flat), {}, step, fresh(flat))
        return flat.squeeze(-1)

    draws = final(Cyclical(SGLD(0.9), cycle_length=40, exploration=0.0))
    assert float((draws < 0).double().mean()) == pytest.approx(0.5, abs=0.08)
    assert float((draws.abs() - 2.0).square().mean().sqrt()) == pytest.approx(0.5, rel=0.12)
    assert float((final(SGLD(0.05)) < 0).double().mean()) < 0.05


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Cyclical(SGNHT(0.1), 10), TypeError, "kernel: expected SGLD.*thermostat"),
        (lambda: Cyclical(Cyclical(SGLD(0.1), 10), 10), TypeError, "kernel: expected SGLD.*got Cyclical"),
        (lambda: Cyclical(SGLD(PolynomialDecay(0.1, 1.0)), 10), ValueError, "kernel: its step_size is a schedule"),
        (lambda: Cyclical(SGLD(0.1), 0), ValueError, "cycle_length: expected a positive int"),
        (lambda: Cyclical(SGLD(0.1), 10, 1.0), ValueError, "exploration: expected a number from 0 to below 1"),
        (lambda: Cyclical(SGLD(0.1), 1, 0.5), ValueError, "leaves none to sample"),
    ],
)
def test_bad_settings(make: Callable[[], Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
