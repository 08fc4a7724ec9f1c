r"""What Stirling's formula leaves of the logarithm of Γ and of its derivative, for arguments of :data:`LARGE` or more.

.. math::  \ln \Gamma(a) = (a - \tfrac12) \ln a - a + \tfrac12 \ln 2 \pi + r(a), \qquad
           \psi(a) = \ln a - \frac{1}{2 a} - s(a)

Sums of these functions whose large terms cancel are computed from r and s, which are small (DLMF 5.11).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LARGE", "digamma_remainder", "log_gamma_ratio", "log_gamma_remainder"]

LARGE = 20.0
"""From here on five terms of the series leave less than 1e-16."""


def log_gamma_remainder(a: Tensor) -> Tensor:
    """r of numbers of :data:`LARGE` or more."""
    u = a.reciprocal()
    v = u * u
    return u * (1 / 12 - v * (1 / 360 - v * (1 / 1260 - v * (1 / 1680 - v / 1188))))


def log_gamma_ratio(a: Tensor, more: Tensor) -> Tensor:
    """``ln Γ(a + n) - ln Γ(a)`` of positive numbers and n of at least 0, whose terms cancel for a large a."""
    large = a > LARGE
    big, small = a.clamp_min(LARGE), a.clamp_max(LARGE)
    both = big + more
    growth = more * big.log() + (both - 0.5) * torch.log1p(more / big) - more
    series = growth + log_gamma_remainder(both) - log_gamma_remainder(big)
    return torch.where(large, series, torch.lgamma(small + more) - torch.lgamma(small))


def digamma_remainder(a: Tensor) -> Tensor:
    """s of numbers of :data:`LARGE` or more."""
    v = a.reciprocal().square()
    return v * (1 / 12 - v * (1 / 120 - v * (1 / 252 - v * (1 / 240 - v / 132))))
