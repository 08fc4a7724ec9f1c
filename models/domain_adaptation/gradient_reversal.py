r"""Gradient reversal: the identity, whose gradient is turned around.

.. math::  R_\lambda(x) = x, \qquad \frac{\partial R_\lambda}{\partial x} = -\lambda I.

One backward pass through ``discriminator(reverse_gradient(features))`` then gives both players of the game
:math:`\min_D \max_f L(D, f)` their gradients. Ganin & Lempitsky, *Unsupervised Domain Adaptation by Backpropagation*
(2015).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative

__all__ = ["reverse_gradient"]


def reverse_gradient(x: Tensor, weight: float = 1.0) -> Tensor:
    """``x`` itself; what comes back to it is ``-weight`` times the gradient.

    Args:
        x: Any tensor.
        weight: Factor λ of the reversed gradient.

    Raises:
        ValueError: If ``weight`` is negative or not finite.
    """
    check_non_negative("weight", weight)
    reversed_: Tensor = _Reversal.apply(x, weight)
    return reversed_


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:  # type: ignore[override]
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.weight * gradient, None
