"""Preconditioned SGLD: the kernel suite, the preconditioner by hand, what is fixed when."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyrobnn.sampling import PreconditionedSGLD
from tests.conformance.kernel_suite import KernelConformance


class TestPreconditionedSGLDConformance(KernelConformance):
    """What every kernel must do."""

    gaussian_step = 0.03
    gaussian_steps = 1200
    regression_step = 0.03
    regression_steps = 200

    def make_kernel(self, step_size: Any, temperature: float = 1.0) -> PreconditionedSGLD:
        return PreconditionedSGLD(step_size, temperature)


def test_two_steps_by_hand() -> None:
    kernel = PreconditionedSGLD(0.2, 0.5, decay=0.9, damping=0.1, adaptation="always")
    flat, kick = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.3, -0.7]])
    state = kernel.start(flat, 0)
    expected, squares = flat.clone(), torch.zeros(1, 2)
    for step, gradient in enumerate((torch.tensor([[4.0, 0.5]]), torch.tensor([[-1.0, 2.0]]))):
        squares = 0.9 * squares + 0.1 * gradient**2
        metric = 1.0 / (0.1 + (squares / (1.0 - 0.9 ** (step + 1))).sqrt())
        expected = expected - 0.1 * metric * gradient + (0.2 * 0.5 * metric).sqrt() * kick
        kernel.update(flat, gradient.clone(), state, step, kick.clone)
        torch.testing.assert_close(flat, expected)


@pytest.mark.parametrize(("adaptation", "changes"), [("warmup", 4), (2, 2), ("always", 8)])
def test_the_preconditioner_is_adapted_as_long_as_asked(adaptation: Any, changes: int) -> None:
    kernel = PreconditionedSGLD(0.01, adaptation=adaptation)
    flat = torch.ones(1, 2)
    state = kernel.start(flat, 4)
    seen = []
    for step in range(8):
        kernel.update(flat, torch.full_like(flat, 1.0 + step), state, step, flat.clone)
        seen.append(float(state["squares"][0, 0]))
    assert len(set(seen)) == changes


def test_adaptation_needs_burn_in() -> None:
    with pytest.raises(ValueError, match="warmup_steps: the preconditioner is adapted during warmup"):
        PreconditionedSGLD(0.1).start(torch.zeros(1, 2), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay: expected a number above 0 to below 1"),
        ({"damping": 0.0}, "damping: expected a positive number"),
        ({"adaptation": 0}, "adaptation: expected a positive int"),
        ({"adaptation": "never"}, "adaptation: expected a positive int"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreconditionedSGLD(0.1, **options)
