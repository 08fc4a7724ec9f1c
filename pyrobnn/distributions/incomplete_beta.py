r"""The regularized incomplete beta function, which torch does not have.

.. math::  I_x(a, b) = \frac{\Gamma(a + b)}{\Gamma(a) \Gamma(b)} \int_0^x t^{a - 1} (1 - t)^{b - 1} dt,

by its continued fraction (modified Lentz; Press et al., Numerical Recipes, section 6.4).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["incomplete_beta"]

_MAX_TERMS, _CHECK_EVERY = 20_000, 8


@torch.no_grad()
def incomplete_beta(a: Tensor, b: Tensor, x: Tensor, complement: Tensor) -> Tensor:
    """:math:`I_x(a, b)` elementwise, without a gradient; broadcasts.

    Args:
        a: First shape, positive.
        b: Second shape, positive.
        x: Upper end of the integral, from 0 to 1.
        complement: ``1 - x``, without the rounding of that difference.
    """
    a, b, x, complement = torch.broadcast_tensors(a, b, x, complement)
    swapped = x > (a + 1.0) / (a + b + 2.0)  # the fraction converges fast below
    first, second = torch.where(swapped, b, a), torch.where(swapped, a, b)
    low, high = torch.where(swapped, complement, x), torch.where(swapped, x, complement)
    log_front = torch.lgamma(first + second) - torch.lgamma(first) - torch.lgamma(second)
    log_front = log_front + torch.xlogy(first, low) + torch.xlogy(second, high) - first.log()
    found = (log_front.exp() * _fraction(first, second, low)).clamp(0.0, 1.0)
    return torch.where(swapped, 1.0 - found, found)


def _fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    tiny, accuracy = torch.finfo(x.dtype).tiny, 4.0 * torch.finfo(x.dtype).eps

    def away_from_zero(value: Tensor) -> Tensor:
        return torch.where(value.abs() < tiny, tiny, value)

    c = torch.ones_like(x)
    d = away_from_zero(1.0 - (a + b) * x / (a + 1.0)).reciprocal()
    found = d
    for m in range(1, _MAX_TERMS):
        twice = a + 2.0 * m
        for factor in (m * (b - m) * x / ((twice - 1.0) * twice), -(a + m) * (a + b + m) * x / (twice * (twice + 1.0))):
            d = away_from_zero(1.0 + factor * d).reciprocal()
            c = away_from_zero(1.0 + factor / c)
            found = found * d * c
        if m % _CHECK_EVERY == 0 and bool(((d * c - 1.0).abs() <= accuracy).all()):
            break
    return found
