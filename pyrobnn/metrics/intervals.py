r"""Scores of predictive intervals: how often they hold the target, how wide they are, and both in one.

An interval of level :math:`p` ought to hold a share :math:`p` of the targets. In the literature ``interval_coverage``
is PICP, ``interval_width`` MPIW and ``interval_score`` Winkler's score. For central intervals of several levels
:math:`p_j`, with coverages :math:`\hat c_j`,

.. math::  \mathrm{CWCE} &= 100 \sum_j w_j |\hat c_j - p_j| \Big/ \sum_j w_j, \quad w_j = p_j \\
           \mathrm{EPIW} &= \operatorname{mean}_{i, j} (u_{ij} - l_{ij}) \\
           \mathrm{R\text{-}CWCE} &= (1 - R^2)\, \mathrm{CWCE}

in per cent, in the target's units, and in per cent (Cui et al. 2021, arXiv:2103.15041, who print no formulas: these
reproduce the ratios of their table; the weights :math:`w_j` remain a choice).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import Reduction, check_float, check_same_shape, reduced
from pyrobnn.metrics.regression import r2

__all__ = [
    "LevelWeights",
    "check_level_weights",
    "check_levels",
    "coverage_error",
    "cwce",
    "epiw",
    "interval_coverage",
    "interval_score",
    "interval_width",
    "r_cwce",
    "winkler",
]

LevelWeights = Literal["level", "uniform"] | Tensor
"""Weights of levels: the levels themselves, all alike, or a weight for each ``[J]``."""


@explained
def interval_coverage(
    lower: Tensor, upper: Tensor, y: Tensor, reduction: Reduction = "mean", *, weight: Tensor | None = None
) -> Tensor:
    """Share of targets inside the closed interval ``[lower, upper]`` (PICP); compare with the nominal level.

    Args:
        lower: Lower ends, any shape; ``-inf`` is allowed.
        upper: Upper ends of the same shape; ``inf`` is allowed.
        y: Targets of the same shape.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or zeros and ones in the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, NaN, a lower end above its upper end, or wrong weights.
    """
    lower, upper, y = _observed(lower, upper, y)
    return reduced(((lower <= y) & (y <= upper)).to(y.dtype), reduction, weight)


@explained
def interval_width(
    lower: Tensor, upper: Tensor, reduction: Reduction = "mean", *, weight: Tensor | None = None
) -> Tensor:
    """Width ``upper - lower`` (MPIW), in the target's units; infinite for half-open intervals.

    Args:
        lower: Lower ends, any shape.
        upper: Upper ends of the same shape.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or the shape of ``lower``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, NaN, a lower end above its upper end, or wrong weights.
    """
    lower, upper = _interval(lower, upper)
    return reduced(upper - lower, reduction, weight)


@explained
def interval_score(
    lower: Tensor,
    upper: Tensor,
    y: Tensor,
    level: float,
    reduction: Reduction = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Interval score of Winkler, in the target's units: the width, plus a penalty for targets outside.

    :math:`(u - l) + \tfrac2\alpha (l - y)_+ + \tfrac2\alpha (y - u)_+` with :math:`\alpha = 1 - \mathrm{level}`. It is
    proper: the true quantiles at :math:`\alpha / 2` and :math:`1 - \alpha / 2` minimize it in expectation (Winkler
    1972; Gneiting and Raftery 2007).

    Args:
        lower: Lower ends, any shape.
        upper: Upper ends of the same shape.
        y: Targets of the same shape.
        level: Nominal coverage in ``(0, 1)``, such as 0.9.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, NaN, a lower end above its upper end, ``level`` outside ``(0, 1)``, or wrong weights.
    """
    lower, upper, y = _observed(lower, upper, y)
    check_probability("level", level)
    return reduced(winkler(lower, upper, y, level), reduction, weight)


@explained
def cwce(
    lower: Tensor,
    upper: Tensor,
    y: Tensor,
    levels: Sequence[float] | Tensor,
    *,
    level_weights: LevelWeights = "level",
    weight: Tensor | None = None,
) -> Tensor:
    """Coverage-weighted calibration error of central intervals of J levels, in per cent.

    Args:
        lower: Lower ends ``[J, N, ...]``.
        upper: Upper ends of the same shape.
        y: Targets ``[N, ...]``.
        levels: Nominal coverages in ``(0, 1)``, ``[J]``.
        level_weights: Weights of the levels: ``"level"``, ``"uniform"``, or one for each ``[J]``.
        weight: Weights of the examples ``[N]`` in the coverages.

    Returns:
        0-d, from 0 to 100.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, NaN, a lower end above its upper end, a level outside ``(0, 1)``, or wrong weights.
    """
    found = check_levels(levels, lower)
    shares = [
        interval_coverage(low, high, y, weight=weight)
        for low, high in zip(*_levels_first(lower, upper, len(found)), strict=True)
    ]
    return coverage_error(torch.stack(shares), found, level_weights)


@explained
def epiw(lower: Tensor, upper: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean width of the intervals of several levels, over examples and levels, in the target's units.

    Args:
        lower: Lower ends ``[J, N, ...]``.
        upper: Upper ends of the same shape.
        weight: Weights of the examples ``[N]``.

    Returns:
        0-d.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, NaN, a lower end above its upper end, or wrong weights.
    """
    lower, upper = _levels_first(lower, upper, None)
    return torch.stack(
        [interval_width(low, high, weight=weight) for low, high in zip(lower, upper, strict=True)]
    ).mean()


@explained
def r_cwce(
    mean: Tensor,
    lower: Tensor,
    upper: Tensor,
    y: Tensor,
    levels: Sequence[float] | Tensor,
    *,
    level_weights: LevelWeights = "level",
    weight: Tensor | None = None,
) -> Tensor:
    """``(1 - R²) · CWCE``, in per cent: small if the mean explains the targets and intervals are calibrated.

    Args:
        mean: Predictive means ``[N, ...]``.
        lower: Lower ends ``[J, N, ...]``.
        upper: Upper ends of the same shape.
        y: Targets ``[N, ...]``.
        levels: Nominal coverages in ``(0, 1)``, ``[J]``.
        level_weights: As for :func:`cwce`.
        weight: Weights of the examples ``[N]``.

    Returns:
        0-d.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: As :func:`cwce` and :func:`~pyrobnn.metrics.r2`.
    """
    error = cwce(lower, upper, y, levels, level_weights=level_weights, weight=weight)
    return (1.0 - r2(mean, y, weight=weight)) * error


def winkler(lower: Tensor, upper: Tensor, y: Tensor, level: float) -> Tensor:
    """The interval score of each target, unchecked."""
    outside = (lower - y).clamp_min(0.0) + (y - upper).clamp_min(0.0)
    return (upper - lower) + 2.0 / (1.0 - level) * outside


def coverage_error(coverage: Tensor, levels: Tensor, level_weights: LevelWeights) -> Tensor:
    """CWCE of coverages ``[J]`` of intervals of ``levels [J]``, in per cent."""
    shares = check_level_weights(level_weights, levels)
    return (100.0 * (shares * (coverage.double() - levels).abs()).sum()).to(coverage.dtype)


def check_levels(levels: Sequence[float] | Tensor, like: Tensor | None = None) -> Tensor:
    """Levels of intervals ``[J]`` in double precision, on the device of ``like``.

    Raises:
        ValueError: If one is not between 0 and 1, or they are no vector.
    """
    if isinstance(levels, Sequence) and not isinstance(levels, str | bytes):
        for entry in levels:
            check_probability("levels", entry)
        levels = torch.tensor(list(levels), dtype=torch.float64)
    if not isinstance(levels, Tensor) or levels.dim() != 1 or not len(levels) or levels.is_complex():
        raise ValueError(f"levels: expected coverages between 0 and 1, such as [0.5, 0.9], got {levels!r}.")
    if not bool(((levels > 0) & (levels < 1)).all()):
        raise ValueError(f"levels: expected coverages between 0 and 1, got {levels.tolist()}.")
    return levels.to(like.device if isinstance(like, Tensor) else levels.device, torch.float64)


def check_level_weights(level_weights: LevelWeights, levels: Tensor) -> Tensor:
    """The shares of the levels ``[J]``, whose sum is 1.

    Raises:
        ValueError: If they are unknown, of another length, negative or all zero.
    """
    if isinstance(level_weights, Tensor):
        weights = level_weights.to(levels)
    elif isinstance(level_weights, str) and level_weights in ("level", "uniform"):
        weights = levels if level_weights == "level" else torch.ones_like(levels)
    else:
        raise ValueError(f"level_weights: expected 'level', 'uniform' or a tensor, got {level_weights!r}.")
    if weights.shape != levels.shape:
        raise ValueError(
            f"level_weights: expected a weight for each level, shape {list(levels.shape)}, got {list(weights.shape)}."
        )
    if not bool((weights.isfinite() & (weights >= 0)).all()) or not bool((weights > 0).any()):
        raise ValueError(f"level_weights: expected finite weights of at least 0, not all 0, got {weights.tolist()}.")
    return weights / weights.sum()


def _levels_first(lower: Tensor, upper: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    lower, upper = _interval(lower, upper)
    if not lower.dim() or len(lower) != (count or len(lower)):
        expected = f"[{count or 'J'}, N, ...]"
        raise ValueError(f"lower: expected shape {expected}, the levels first, got {list(lower.shape)}.")
    return lower, upper


def _observed(lower: Tensor, upper: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    lower, upper = _interval(lower, upper)
    y = check_float(y, "y", finite=True)
    check_same_shape(y, "y", lower.shape, "lower")
    return lower, upper, y


def _interval(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    lower = check_float(lower, "lower", finite=False)
    upper = check_float(upper, "upper", finite=False)
    check_same_shape(upper, "upper", lower.shape, "lower")
    if crossed := int((lower > upper).sum()):
        raise ValueError(f"lower: expected lower <= upper, violated at {crossed} of {lower.numel()} intervals.")
    return lower, upper
