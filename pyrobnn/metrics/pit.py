r"""Probability integral transform (PIT): the predictive probability of at most the target, uniform if calibrated.

A histogram of it that is high at both ends says that predictions are too narrow, one high in the middle that they are
too wide, and a slope that they are biased. The same numbers give the calibration of quantiles: the share of targets
below the predicted quantile of level :math:`\tau` is :math:`P(\mathrm{PIT} \le \tau)`, which ought to be
:math:`\tau`.

Counts jump, :math:`P(Y < y) < P(Y \le y)`. The PIT is then spread evenly between both, as Czado, Gneiting and Held
(2009) do, which needs no random numbers: pass ``below``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float, check_row_weights, check_same_shape
from pyrobnn.metrics.intervals import check_levels

__all__ = [
    "PitHistogram",
    "QuantileCalibration",
    "bin_shares",
    "check_pit",
    "effective_count",
    "pit_histogram",
    "pit_shares",
    "quantile_calibration",
]


@dataclass(frozen=True, eq=False)
class PitHistogram:
    r"""Shares of targets by their PIT.

    Attributes:
        bin_edges: Edges of B bins of equal width on [0, 1], ``[B + 1]``.
        share: Share of targets in each bin ``[B]``, ``1 / B`` if calibrated.
        count: Number of targets; if they have weights :math:`\omega`, as many as vary alike,
            :math:`(\sum \omega)^2 / \sum \omega^2`.
    """

    bin_edges: Tensor
    share: Tensor
    count: float


@dataclass(frozen=True, eq=False)
class QuantileCalibration:
    """Share of targets below predicted quantiles.

    Attributes:
        levels: Levels of the quantiles ``[J]``.
        observed: Share of targets of at most the quantile ``[J]``, equal to the level if calibrated.
        count: Number of targets, as in :class:`PitHistogram`.
    """

    levels: Tensor
    observed: Tensor
    count: float

    @property
    def error(self) -> Tensor:
        """Mean absolute difference of share and level, 0-d."""
        return (self.observed - self.levels).abs().mean()


@explained
def pit_histogram(
    pit: Tensor, num_bins: int = 10, *, below: Tensor | None = None, weight: Tensor | None = None
) -> PitHistogram:
    """Histogram of the PIT.

    Args:
        pit: ``P(Y <= y)`` of the targets, ``[N, ...]``, such as ``prediction.cdf(y)``.
        num_bins: Number of bins.
        below: ``P(Y < y)``, of counts; None if the distribution is continuous.
        weight: Weights of the examples ``[N]``.

    Returns:
        The histogram.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Values outside [0, 1], shapes that differ, wrong weights, or no positive ``num_bins``.
    """
    check_positive_int("num_bins", num_bins)
    low, high, weights = _checked(pit, below, weight)
    edges = torch.arange(num_bins + 1, dtype=torch.float64, device=high.device) / num_bins
    shares = bin_shares(low, high, weights, edges)
    return PitHistogram(edges, shares / weights.sum(), effective_count(weights.sum(), weights.square().sum()))


@explained
def quantile_calibration(
    pit: Tensor,
    levels: Sequence[float] | Tensor | None = None,
    *,
    below: Tensor | None = None,
    weight: Tensor | None = None,
) -> QuantileCalibration:
    """Share of targets below predicted quantiles.

    Args:
        pit: ``P(Y <= y)`` of the targets, ``[N, ...]``, such as ``prediction.cdf(y)``.
        levels: Levels of quantiles in ``(0, 1)``; None: 0.05, 0.1, ..., 0.95.
        below: ``P(Y < y)``, of counts; None if the distribution is continuous.
        weight: Weights of the examples ``[N]``.

    Returns:
        Levels and shares.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Values or levels outside their ranges, shapes that differ, or wrong weights.
    """
    low, high, weights = _checked(pit, below, weight)
    found = check_levels(torch.arange(1, 20, dtype=torch.float64) / 20 if levels is None else levels, high)
    observed = pit_shares(low, high, weights, found) / weights.sum()
    return QuantileCalibration(found, observed, effective_count(weights.sum(), weights.square().sum()))


def pit_shares(low: Tensor, high: Tensor, weight: Tensor, points: Tensor) -> Tensor:
    """Sum of weights of targets whose PIT is at most each of ``points [J]``; all arguments are vectors.

    A target whose PIT is spread from ``low`` to ``high`` counts in part.
    """
    points = points.to(high).unsqueeze(-1)
    width = (high - low).clamp_min(torch.finfo(high.dtype).tiny)
    part = torch.where(high > low, ((points - low) / width).clamp(0.0, 1.0), (high <= points).to(high))
    return (part * weight).sum(-1)


def bin_shares(low: Tensor, high: Tensor, weight: Tensor, edges: Tensor) -> Tensor:
    """Sums of weights in the bins between ``edges [B + 1]``, the first of which holds a PIT of 0; as above."""
    below = pit_shares(low, high, weight, edges[1:])
    return torch.cat([below[:1], below.diff()])


def effective_count(total: Tensor, squares: Tensor) -> float:
    """``(Σ ω)² / Σ ω²``, the number of targets if the weights are equal."""
    return float(total.square() / squares.clamp_min(torch.finfo(squares.dtype).tiny))


def check_pit(pit: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
    """Lower and upper ends of the PIT in double precision.

    Args:
        pit: ``P(Y <= y)``, of any shape.
        below: ``P(Y < y)`` of the same shape; None if the distribution is continuous.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Values outside [0, 1], shapes that differ, or a lower end above the upper one.
    """
    pit = _check_unit("pit", pit)
    low = pit if below is None else _check_unit("below", below)
    check_same_shape(low, "below", pit.shape, "pit")
    if bool((low > pit).any()):
        raise ValueError("below: expected P(Y < y) of at most pit, P(Y <= y).")
    return low, pit


def _checked(pit: Tensor, below: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper ends of the PIT and weights, as vectors in double precision."""
    low, pit = check_pit(pit, below)
    if weight is not None and not pit.dim():
        raise ValueError("pit: expected shape [N, ...], got a scalar.")
    rows = check_row_weights(weight, len(pit)) if weight is not None else torch.ones(len(pit) if pit.dim() else 1)
    shaped = rows.to(pit).reshape(-1, *(1,) * (pit.dim() - 1)).expand(pit.shape if pit.dim() else (1,))
    return low.flatten(), pit.flatten(), shaped.flatten()


def _check_unit(name: str, value: Tensor) -> Tensor:
    value = check_float(value, name, finite=True).double()
    low, high = value.aminmax()
    if low < 0 or high > 1:
        raise ValueError(f"{name}: expected probabilities, got values from {low.item():.4g} to {high.item():.4g}.")
    return value
