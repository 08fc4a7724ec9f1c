"""Comparisons whose tolerance is the Monte Carlo error.

Each function returns the largest absolute z-score over all elements. Under agreement it exceeds 5 with
probability below ``6e-7`` per element, so 5 suits up to a thousand elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

Z = 5.0
"""The z-score at which two Monte Carlo results are held to disagree."""


def z_of_mean(draws: Tensor, known: Tensor | float, rounding: float = 1e-5) -> float:
    """Mean of ``draws [K, ...]`` against a known value; ``rounding`` is the relative error allowed beside."""
    return _largest(draws.mean(0) - known, _error_of_mean(draws), torch.as_tensor(known), rounding)


def z_of_means(a: Tensor, b: Tensor, rounding: float = 1e-5) -> float:
    """Means of two independent sets of draws ``[K, ...]``."""
    error = (_error_of_mean(a).square() + _error_of_mean(b).square()).sqrt()
    return _largest(a.mean(0) - b.mean(0), error, b.mean(0), rounding)


def z_of_variances(a: Tensor, b: Tensor, rounding: float = 1e-5) -> float:
    """Variances of two independent sets of draws ``[K, ...]``."""
    return z_of_means((a - a.mean(0)).square(), (b - b.mean(0)).square(), rounding)


def _error_of_mean(draws: Tensor) -> Tensor:
    return draws.std(0) / len(draws) ** 0.5


def _largest(difference: Tensor, error: Tensor, size: Tensor, rounding: float) -> float:
    return float((difference.abs() / (error + rounding * size.abs() / Z + 1e-12)).max())
