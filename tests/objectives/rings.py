"""Data with outliers around them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rings", "classes_and_rings"]


class Rings(NamedTuple):
    """120 rows each."""

    x: Tensor
    y: Tensor
    near: Tensor
    """Outliers to train on."""
    far: Tensor
    """Others, to be found."""


def classes_and_rings(seed: int = 0) -> Rings:
    """Three classes on a circle of radius 2, and rings of radius 5 and 6.5 around them."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(120) % 3
    angle = 2 * math.pi * y / 3
    x = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.4 * torch.randn(120, 2, generator=generator)

    def ring(radius: float) -> Tensor:
        turned = 2 * math.pi * torch.rand(120, generator=generator)
        return radius * torch.stack([turned.cos(), turned.sin()], 1)

    return Rings(x, y, ring(5.0), ring(6.5))
