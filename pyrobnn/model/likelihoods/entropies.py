r"""Entropies of a mixture over posterior draws and of its parts, by quadrature in one dimension.

.. math::  \underbrace{H[\bar p]}_{\text{total}} = \underbrace{\tfrac1K \sum_k H[p_k]}_{\text{aleatoric}}
           + \underbrace{I[y; w]}_{\text{epistemic}}, \qquad \bar p = \tfrac1K \sum_k p_k,
           \quad H[p] = -\int p \log p

(Depeweg et al. 2018). Gauss–Legendre rules are used between edges that share the mixture's probability, so that narrow
densities far apart are all met; panels in which that is uneven are halved. Positive targets are integrated over their
logarithm; counts are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.model.likelihoods.quantiles import is_discrete, is_positive_only, mixture_cdf, mixture_quantile

__all__ = [
    "NODES_PER_DRAW",
    "TAIL",
    "EntropySplit",
    "JointEntropySplit",
    "entropy_split",
    "joint_entropy_split",
    "quadrature_nodes",
]

TAIL = 1e-9
"""Probability that is left out on either side."""

_COUNT_TAIL = 1e-11
_NODES, _TAIL_PANELS, _EVEN_PANELS = 8, 32, 64
_ROUNDS, _HALVINGS, _UNEVEN = 5, 14, 0.02
_MAX_COUNTS = 100_000
_SMALLEST = 1e-300

NODES_PER_DRAW = 2 * _NODES * (_TAIL_PANELS + _EVEN_PANELS)
"""About how many points each density is evaluated at."""


class EntropySplit(NamedTuple):
    """Entropies in nats, of each target alone ``[N, …]``.

    Attributes:
        total: Entropy of the posterior mixture.
        aleatoric: Mean entropy of the draws' distributions.
        epistemic: Their difference, the mutual information of target and weights.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


class JointEntropySplit(NamedTuple):
    """Entropies in nats of all targets of an input together ``[N]``, estimated from targets that were drawn.

    Attributes:
        total: Entropy of the posterior mixture.
        aleatoric: Mean entropy of the draws' distributions.
        epistemic: Their difference, the mutual information of targets and weights; by chance it can be negative.
        total_error, aleatoric_error, epistemic_error: Standard errors of these estimates.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    total_error: Tensor
    aleatoric_error: Tensor
    epistemic_error: Tensor


def joint_entropy_split(
    drawn: Callable[[], Tensor], log_prob: Callable[[Tensor], Tensor], per_draw: int
) -> JointEntropySplit:
    r"""The split by Monte Carlo, with equally many targets from each of the K draws.

    With :math:`y \sim p_k`, :math:`-\log p_k(y)` has the mean of the aleatoric part, :math:`-\log \frac1K \sum_j
    p_j(y)` that of the total and their difference, of the same targets, that of the mutual information.

    Args:
        drawn: Returns targets ``[K, N, …]``, one of each draw.
        log_prob: Log densities ``[K, N]`` of targets ``[N, …]`` under each draw.
        per_draw: Number of targets of each draw, at least 2.
    """
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    for _ in range(per_draw):
        by_draw = torch.stack([log_prob(y) for y in drawn()]).double()  # [K of targets, K, N]
        own = -by_draw.diagonal().movedim(-1, 0)
        mixture = math.log(by_draw.shape[1]) - by_draw.logsumexp(1)
        values = torch.stack([mixture, own, mixture - own])
        first, second = first + values, second + values.square()
    mean = torch.as_tensor(first) / per_draw
    variance = (torch.as_tensor(second) / per_draw - mean.square()).clamp_min(0.0) / (per_draw - 1)  # of each mean
    found, error = mean.mean(1), variance.sum(1).sqrt() / mean.shape[1]
    return JointEntropySplit(*found, *error)


def entropy_split(each: dist.TorchDistribution, inside: float) -> EntropySplit:
    """The split for the distributions of K draws, batch shape ``[K, N, ...]``, in double precision.

    Args:
        each: With ``log_prob`` and ``cdf``.
        inside: A number in the support.

    Raises:
        ValueError: If counts spread over more than 100,000 numbers.
    """
    y, log_weight = _counts(each, inside) if is_discrete(each) else _nodes(each, inside)
    log_each = each.log_prob(y.unsqueeze(-len(each.batch_shape)))  # [Q, K, N, ...]
    draws = log_each.dim() - len(each.batch_shape)
    log_mixture = log_each.logsumexp(draws) - math.log(each.batch_shape[0])
    weight = log_weight.exp()
    total = (weight * torch.special.entr(log_mixture.exp())).sum(0)
    aleatoric = (weight * torch.special.entr(log_each.exp()).mean(draws)).sum(0)
    return EntropySplit(total, aleatoric, (total - aleatoric).clamp_min(0.0))


def _counts(each: dist.TorchDistribution, inside: float) -> tuple[Tensor, Tensor]:
    levels = torch.tensor([_COUNT_TAIL, 1.0 - _COUNT_TAIL], dtype=torch.float64, device=_device(each))
    low, high = mixture_quantile(each, levels, inside)
    span = int((high - low).max())
    if span > _MAX_COUNTS:
        raise ValueError(
            f"entropy_split: counts spread over {span} numbers, more than {_MAX_COUNTS}; use total, aleatoric and "
            "epistemic, which split the variance."
        )
    steps = torch.arange(span + 1, dtype=torch.float64, device=low.device).reshape(-1, *(1,) * low.dim())
    y = low + steps
    return y, torch.where(y <= high, 0.0, -math.inf)


def quadrature_nodes(
    cdf: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, positive: bool = False, at: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Points ``[Q, N, ...]`` and log weights of integrals over targets from ``low`` to ``high``.

    Args:
        cdf: Cumulative probabilities of several targets of each input ``[Q, N, ...]``, of their shape.
        low: The lower ends ``[N, ...]``.
        high: The upper ends.
        positive: Whether to integrate over the logarithm of targets.
        at: Where an integrand is not smooth, ``[N, ...]`` between the ends; a panel ends there.
    """
    if positive:
        low, high = low.clamp_min(_SMALLEST).log(), high.log()
        at = None if at is None else at.clamp_min(_SMALLEST).log()
    edges = _edges((lambda t: cdf(t.exp())) if positive else cdf, low, high)
    if at is not None:
        edges = torch.cat([edges, at.unsqueeze(0)]).sort(0).values
    points, weights = (torch.from_numpy(part).to(low.device) for part in np.polynomial.legendre.leggauss(_NODES))
    shape = (_NODES, *(1,) * edges.dim())
    half, center = edges.diff(dim=0) / 2, (edges[1:] + edges[:-1]) / 2
    t = (center + half * points.reshape(shape)).flatten(0, 1)
    log_weight = (half * weights.reshape(shape)).flatten(0, 1).log()
    return (t.exp(), log_weight + t) if positive else (t, log_weight)


def _nodes(each: dist.TorchDistribution, inside: float) -> tuple[Tensor, Tensor]:
    levels = torch.tensor([TAIL, 1.0 - TAIL], dtype=torch.float64, device=_device(each))
    low, high = mixture_quantile(each, levels, inside)
    return quadrature_nodes(lambda y: mixture_cdf(each, y, inside), low, high, is_positive_only(each))


def _edges(cdf_at: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Edges ``[P + 1, N, ...]`` of panels in which the probability is small or evenly spread."""

    def cdf(points: Tensor) -> Tensor:
        return cdf_at(points.T.reshape(-1, *low.shape)).flatten(1).T.contiguous()

    reach = math.log((1.0 - TAIL) / TAIL)
    tails = torch.linspace(-reach, reach, _TAIL_PANELS + 1, dtype=torch.float64).sigmoid()[1:-1]
    even = torch.linspace(0.0, 1.0, _EVEN_PANELS + 2, dtype=torch.float64)[1:-1]
    levels = torch.cat([tails, even]).sort().values.to(low.device)
    share = torch.linspace(0.0, 1.0, len(levels) + 2, dtype=torch.float64, device=low.device)
    first, last = low.reshape(-1, 1), high.reshape(-1, 1)
    edges = first + (last - first) * share  # [N * ..., P + 1], each a row of its own
    for _ in range(_ROUNDS):
        inner = _inverse(cdf(edges), edges, levels.expand(len(edges), -1).contiguous())
        edges = torch.cat([first, inner, last], 1).cummax(1).values
    for _ in range(_HALVINGS):
        middle = (edges[:, 1:] + edges[:, :-1]) / 2
        at_edges = cdf(edges)
        uneven = (cdf(middle) - (at_edges[:, 1:] + at_edges[:, :-1]) / 2).abs()
        if float(uneven.sum(1).max()) < _UNEVEN:
            break
        worst = uneven.topk(middle.shape[1] // 4).indices
        edges = torch.cat([edges, middle.gather(1, worst)], 1).sort(1).values
    return edges.T.reshape(-1, *low.shape)


def _inverse(cdf: Tensor, points: Tensor, levels: Tensor) -> Tensor:
    """Where the piecewise linear function through ``(points, cdf)`` reaches each level; rows ``[N, P]``."""
    right = torch.searchsorted(cdf, levels).clamp(1, cdf.shape[1] - 1)
    below, above = cdf.gather(1, right - 1), cdf.gather(1, right)
    part = ((levels - below) / (above - below).clamp_min(1e-300)).clamp(0.0, 1.0)
    start, end = points.gather(1, right - 1), points.gather(1, right)
    return start + part * (end - start)


def _device(each: dist.TorchDistribution) -> torch.device:
    return each.mean.device
