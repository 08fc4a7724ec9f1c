r"""CRPS of mixtures over posterior draws, computed and not sampled.

.. math::  \int (F(t) - [y \le t])^2\, dt, \qquad F = \tfrac1K \sum_k F_k

In closed form for mixtures of Gaussian, Laplace and log-normal distributions, else by quadrature of the mixture's
distribution function, in panels of which one ends at the target; of counts by a sum. All in double precision.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.distributions import log_normal
from pyrobnn.metrics.crps import gaussian_mixtures, laplace_mixtures, log_normal_mixtures
from pyrobnn.model.likelihoods.entropies import NODES_PER_DRAW, TAIL, quadrature_nodes
from pyrobnn.model.likelihoods.quantiles import is_discrete, is_positive_only, mixture_cdf, mixture_quantile

__all__ = ["mixture_crps", "points_per_draw", "quadrature_crps"]

_COUNT_TAIL = 1e-11
_CHUNK, _MAX_COUNTS = 256, 2**20
_CLOSED = {
    dist.Normal: gaussian_mixtures,
    dist.Laplace: laplace_mixtures,
    dist.LogNormal: log_normal_mixtures,
    log_normal.LogNormal: log_normal_mixtures,
}
"""By exact type: a subclass may have another distribution function."""


def mixture_crps(each: dist.TorchDistribution, y: Tensor, inside: float) -> Tensor:
    """The score of each target, ``[N, ...]``.

    Args:
        each: The distributions of K draws, batch shape ``[K, N, ...]``, with a ``cdf``.
        y: Targets ``[N, ...]`` in double precision.
        inside: A number in the support.

    Raises:
        ValueError: If counts spread over more than a million numbers.
    """
    if (found := _closed_form(each, y)) is not None:
        return found
    return (_of_counts if is_discrete(each) else _by_quadrature)(each, y, inside)


def points_per_draw(each: dist.TorchDistribution) -> int:
    """About how many points each distribution function is evaluated at; 1 for a closed form."""
    return 1 if _has_closed_form(each) else NODES_PER_DRAW


def _has_closed_form(each: dist.TorchDistribution) -> bool:
    parts = each.component_distribution if type(each) is dist.MixtureSameFamily else each
    return type(parts) is dist.Normal or type(each) in _CLOSED


def _closed_form(each: dist.TorchDistribution, y: Tensor) -> Tensor | None:
    draws = each.batch_shape[0]
    if type(each) in _CLOSED:
        loc, scale = each.loc, each.scale
        shares = torch.full_like(loc, 1.0 / draws)
        return _CLOSED[type(each)](loc, scale, shares, y)
    if type(each) is dist.MixtureSameFamily and type(each.component_distribution) is dist.Normal:
        parts = each.component_distribution
        shares = each.mixture_distribution.probs / draws
        loc, scale, shares = (part.movedim(-1, 1).flatten(0, 1) for part in (parts.loc, parts.scale, shares))
        return gaussian_mixtures(loc, scale, shares, y)
    return None


def _by_quadrature(each: dist.TorchDistribution, y: Tensor, inside: float) -> Tensor:
    low, high = mixture_quantile(each, y.new_tensor([TAIL, 1.0 - TAIL]), inside)
    return quadrature_crps(lambda t: mixture_cdf(each, t, inside), y, low, high, is_positive_only(each))


def quadrature_crps(
    cdf: Callable[[Tensor], Tensor], y: Tensor, low: Tensor, high: Tensor, positive: bool = False
) -> Tensor:
    """The score of each target ``[N, ...]`` under any distribution function, in double precision.

    Args:
        cdf: Cumulative probabilities of several targets of each input ``[Q, N, ...]``, of their shape.
        y: Targets.
        low: Quantiles beyond which the distribution function is 0, but for ``TAIL``.
        high: Quantiles beyond which it is 1.
        positive: Whether to integrate over the logarithm of targets.
    """
    at = torch.minimum(torch.maximum(y, low), high)
    points, log_weight = quadrature_nodes(lambda t: cdf(t).double(), low, high, positive, at)
    error = cdf(points).double() - (points >= at).double()
    beyond = (at - y).abs()  # where the distribution function is 0 or 1, the distance counts in full
    return (log_weight.exp() * error.square()).sum(0) + beyond


def _of_counts(each: dist.TorchDistribution, y: Tensor, inside: float) -> Tensor:
    levels = torch.tensor([_COUNT_TAIL, 1.0 - _COUNT_TAIL], dtype=torch.float64, device=y.device)
    low, high = mixture_quantile(each, levels, inside)
    span = int((high - low).max()) + 1
    if span > _MAX_COUNTS:
        raise ValueError(
            f"crps: counts spread over {span} numbers, more than {_MAX_COUNTS}; score draws by "
            "metrics.crps(prediction.sample(n), y) instead."
        )
    # Outside of low to high + 1 the distribution function is 0 or 1, and what is between there and y counts in full.
    total = (low - y).clamp_min(0.0) + (y - high - 1.0).clamp_min(0.0)
    for start in range(0, span, _CHUNK):
        steps = torch.arange(start, min(start + _CHUNK, span), dtype=torch.float64, device=y.device)
        left = low + steps.reshape(-1, *(1,) * low.dim())
        cdf = mixture_cdf(each, left, inside)
        below = (y - left).clamp(0.0, 1.0)  # the part of [left, left + 1] that is below y
        each_part = below * cdf.square() + (1.0 - below) * (1.0 - cdf).square()
        total = total + torch.where(left <= high, each_part, 0.0).sum(0)
    return total
