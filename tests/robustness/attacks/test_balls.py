"""Projections around fixed centers are those of each call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyrobnn.robustness.attacks.balls import ball_of


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_projector_is_the_projection(norm: Any, clip: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 3, 4, generator=generator)
    ball = ball_of(norm, 0.3, clip)
    project = ball.projector(x)
    for scale in (0.1, 0.5, 3.0):
        moved = x + scale * torch.randn(50, 3, 4, generator=generator)
        assert torch.equal(project(moved), ball.project(x, moved))
        assert bool(ball.contains(x, project(moved)).all())
