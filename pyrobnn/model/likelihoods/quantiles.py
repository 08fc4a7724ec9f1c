r"""Cumulative probabilities and quantiles of mixtures over posterior draws, computed and not sampled.

.. math::  F(y) = \tfrac1K \sum_k F_k(y), \qquad F^{-1}(q) = \min \{ y : F(y) \ge q \},

the latter by bisection. All numbers are in double precision, since far tails need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["bracketed_quantile", "is_discrete", "is_positive_only", "mixture_cdf", "mixture_quantile", "row_parts"]

_MAX_ELEMENTS = 2**20
_LARGEST = torch.finfo(torch.float64).max
_PARTS = 16
_CUTS = {torch.float64: 10, torch.float32: 7}  # leave 1e-12 and 4e-9 of the first interval


def row_parts(parameters: Mapping[str, Tensor], per_element: int) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Parameters ``[K, N, ...]`` in double precision, for parts of the N inputs that fit into a few MiB.

    Args:
        parameters: By name.
        per_element: How many points are evaluated for each element.
    """
    first = next(iter(parameters.values()))
    elements = max(value[:, :1].numel() for value in parameters.values())
    rows = max(1, _MAX_ELEMENTS // max(1, elements * per_element))
    for start in range(0, first.shape[1], rows):
        part = slice(start, start + rows)
        yield part, {name: value[:, part].double() for name, value in parameters.items()}


def is_discrete(each: dist.TorchDistribution) -> bool:
    """Whether the values are whole numbers."""
    return bool(_support(each).is_discrete)


def is_positive_only(each: dist.TorchDistribution) -> bool:
    """Whether no value is negative."""
    return not bool(_support(each).check(torch.tensor(-1.0, device=each.mean.device)).any())


def _support(each: dist.TorchDistribution) -> Any:
    return each.support


def mixture_cdf(each: dist.TorchDistribution, y: Tensor, inside: float) -> Tensor:
    r""":math:`\frac1K \sum_k P(Y_k \le y)`.

    Args:
        each: The distributions of K draws, batch shape ``[K, N, ...]``.
        y: ``[..., N, ...]``: any number of points in front.
        inside: A number in the support; what is outside of the support is below or above all of it.
    """
    y = y.floor() if is_discrete(each) else y
    y = y.unsqueeze(-len(each.batch_shape))
    outside = ~_support(each).check(y)
    found = each.cdf(torch.where(outside, inside, y))
    beyond = torch.where(y.isnan(), math.nan, (y > inside).to(found))
    return torch.where(outside, beyond, found).mean(-len(each.batch_shape))


def mixture_quantile(each: dist.TorchDistribution, levels: Tensor, inside: float) -> Tensor:
    """The smallest number of at least cumulative probability ``levels [Q]``, as ``[Q, N, ...]``.

    Args:
        each: The distributions of K draws, batch shape ``[K, N, ...]``.
        levels: Between 0 and 1; or ``[Q, N, ...]``, other ones for each target.
        inside: As for :func:`mixture_cdf`.
    """
    shape = each.batch_shape[1:]
    levels = levels.to(torch.float64)
    levels = levels.reshape(-1, *(1,) * len(shape)) if levels.dim() == 1 else levels

    def reached(y: Tensor) -> Tensor:
        return mixture_cdf(each, y, inside) >= levels

    start = torch.zeros(len(levels), *shape, dtype=torch.float64, device=levels.device)
    return _smallest_integer(reached, start) if is_discrete(each) else _smallest_number(reached, start)


def bracketed_quantile(
    each: dist.TorchDistribution, levels: Sequence[float], inside: float, mean: Tensor, variance: Tensor
) -> Tensor:
    r"""The same by a fixed number of operators and no decisions, as programs need it, in the dtype of ``mean``.

    By Cantelli's inequality a quantile of a distribution with mean μ and variance σ² is between
    :math:`\mu - \sigma \sqrt{(1 - q) / q}` and :math:`\mu + \sigma \sqrt{q / (1 - q)}`. That interval is cut into
    sixteen, of which the one with the quantile is kept, and so on.

    Args:
        each: The distributions of K draws, batch shape ``[K, N, ...]``.
        levels: Between 0 and 1.
        inside: As for :func:`mixture_cdf`.
        mean: Of the mixture, ``[N, ...]``.
        variance: Of the mixture.
    """
    q = torch.tensor(levels, dtype=mean.dtype, device=mean.device).reshape(-1, *(1,) * mean.dim())
    cuts = torch.arange(1, _PARTS, dtype=mean.dtype, device=mean.device).reshape(-1, 1, *(1,) * mean.dim()) / _PARTS
    spread = variance.sqrt()
    slack = 1e-3 * spread  # of rounding
    low = mean - spread * ((1.0 - q) / q).sqrt() - slack
    width = spread * (q * (1.0 - q)).rsqrt() + 2.0 * slack
    for _ in range(_CUTS[mean.dtype]):
        below = (mixture_cdf(each, low + width * cuts, inside) < q).to(mean.dtype).sum(0)
        width = width / _PARTS
        low = low + width * below
    return (low + width).round() if is_discrete(each) else low + width


def _smallest_integer(reached: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    low, high = start - 1.0, start + 1.0  # counts: low is not reached, high will be
    while not bool((done := reached(high)).all()):
        if float(high.max()) > 2.0**50:
            raise ValueError("quantile: it is above 2**50, where counts have no exact numbers.")
        low, high = torch.where(done, low, high), torch.where(done, high, 2.0 * high)
    while bool((high - low > 1.0).any()):
        middle = ((low + high) / 2).floor()
        done = reached(middle)
        low, high = torch.where(done, low, middle), torch.where(done, middle, high)
    return high


def _smallest_number(reached: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Bisection in the order of floating-point numbers: 64 halvings find any of them to its last digit."""
    low, high = _rank(start - _LARGEST), _rank(start + _LARGEST)
    for _ in range(64):
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # without overflow
        done = reached(_number(middle))
        low, high = torch.where(done, low, middle), torch.where(done, middle, high)
    return _number(high)


def _rank(number: Tensor) -> Tensor:
    """Whole numbers in the order of doubles."""
    bits = number.view(torch.int64)
    return torch.where(bits < 0, torch.iinfo(torch.int64).min - bits, bits)


def _number(rank: Tensor) -> Tensor:
    """The double of a rank."""
    return torch.where(rank < 0, torch.iinfo(torch.int64).min - rank, rank).view(torch.float64)
