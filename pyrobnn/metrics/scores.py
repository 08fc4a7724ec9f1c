"""Scores of predictions against what was observed.

Classification takes class probabilities ``probs: [..., C]`` (of a posterior: the *mean over draws* of the
probabilities, never of the logits) and labels ``y: [...]``. Regression takes the predictive mean, draws,
quantiles or intervals and targets ``y`` of the same shape; shapes are never broadcast.

Lower is better, except for ``accuracy`` (higher) and ``interval_coverage`` (close to nominal). ``nll``,
``brier``, ``crps``, ``gaussian_crps`` and ``pinball`` are proper: the true distribution (or quantile)
minimizes them in expectation. With ``reduction="mean"`` a score is the 0-d mean over all examples, with
``"none"`` one value each.

Source: Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 102, 2007.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pyro.ops.stats import crps_empirical
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float, check_labels, check_probs, check_same_shape

Reduction = Literal["mean", "none"]


@explained
def nll(probs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Negative log likelihood (log score) ``-log p_y``, in nats.

    Infinite where the observed class was given probability zero: the score's honest value, not an error.

    Args:
        probs: Class probabilities ``[..., C]``.
        y: Labels ``[...]``.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or ``[...]``; in ``[0, inf]``.

    Raises:
        TypeError: Wrong dtypes.
        ValueError: Not probabilities, shapes that do not fit, labels outside the classes.
    """
    probs, y = _classification(probs, y)
    return _reduce(-probs.gather(-1, y.unsqueeze(-1)).squeeze(-1).log(), reduction)


@explained
def brier(probs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Brier score, summed over classes: ``sum_c (p_c - [y = c])²``, in ``[0, 2]``.

    Brier, "Verification of forecasts expressed in terms of probability", 1950. Some libraries report the
    score of the positive class alone for two classes, which is half of this one, or divide by ``C``.

    Args:
        probs: Class probabilities ``[..., C]``.
        y: Labels ``[...]``.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or ``[...]``.

    Raises:
        TypeError: Wrong dtypes.
        ValueError: Not probabilities, shapes that do not fit, labels outside the classes.
    """
    probs, y = _classification(probs, y)
    one_hot = torch.nn.functional.one_hot(y, probs.shape[-1])
    return _reduce((probs - one_hot).square().sum(-1), reduction)


@explained
def accuracy(probs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Share of examples whose most probable class is the label; ties go to the lowest class index.

    Args:
        probs: Class probabilities ``[..., C]``.
        y: Labels ``[...]``.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or ``[...]`` of zeros and ones.

    Raises:
        TypeError: Wrong dtypes.
        ValueError: Not probabilities, shapes that do not fit, labels outside the classes.
    """
    probs, y = _classification(probs, y)
    return _reduce((probs.argmax(-1) == y).to(probs.dtype), reduction)


@explained
def rmse(mean: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Root mean squared error, in the target's units.

    Args:
        mean: Predictive mean, any shape.
        y: Targets of the same shape.
        reduction: ``"mean"``, or ``"none"`` for the *squared* errors under the root (target's units squared).

    Returns:
        0-d root of the mean, or the squared errors in the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ or values are not finite.
    """
    mean, y = _regression(mean=mean, y=y)
    squared = _reduce((mean - y).square(), reduction)
    return squared if reduction == "none" else squared.sqrt()


@explained
def crps(draws: Tensor, y: Tensor, *, fair: bool = True, reduction: Reduction = "mean") -> Tensor:
    """Continuous ranked probability score from predictive draws, in the target's units.

    ``CRPS = E|X - y| - E|X - X'| / 2`` with independent ``X, X'`` from the predictive distribution. The draws
    must include the observation noise: with draws of the mean alone, the score judges a noise-free forecast.

    With ``fair`` the second expectation runs over the ``S (S - 1)`` pairs of distinct draws, which makes the
    score an unbiased estimate of the predictive distribution's CRPS whatever ``S`` is (single values can be
    negative; Ferro, "Fair scores for ensemble forecasts", 2014). Without, it runs over all ``S²`` pairs and
    scores the empirical distribution of the draws, which is larger by ``E|X - X'| / (2 S)`` on average.
    Time is ``O(S log S)``.

    Args:
        draws: Predictive draws ``[S, ...]``; ``S >= 2`` if ``fair``.
        y: Targets ``[...]``.
        fair: Whether to remove the bias of finitely many draws.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or the shape of ``y``. For one draw and ``fair=False`` this is the absolute error.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes that do not fit, values that are not finite, or one draw with ``fair``.
    """
    draws = check_float(draws, "draws", finite=True)
    y = check_float(y, "y", finite=True)
    if draws.ndim < 1:
        raise ValueError("draws: expected shape [S, ...] (draws first), got a scalar.")
    check_same_shape(y, "y", draws.shape[1:], "draws [S, ...]")
    empirical = crps_empirical(draws, y)
    if not fair:
        return _reduce(empirical, reduction)
    num_samples = draws.shape[0]
    if num_samples < 2:
        raise ValueError("draws: the fair score needs at least 2 draws, got 1. Draw more, or pass fair=False.")
    absolute_error = (draws - y).abs().mean(0)
    half_spread = absolute_error - empirical
    return _reduce(absolute_error - half_spread * (num_samples / (num_samples - 1)), reduction)


@explained
def gaussian_crps(mean: Tensor, std: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """CRPS of a Gaussian prediction in closed form, in the target's units.

    ``σ [ z (2 Φ(z) - 1) + 2 φ(z) - 1/√π ]`` with ``z = (y - μ) / σ``; Gneiting et al., 2005.

    Args:
        mean: Predictive mean ``μ``, any shape.
        std: Predictive standard deviation ``σ > 0`` of the same shape, observation noise included.
        y: Targets of the same shape.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, values are not finite, or ``std`` is not positive.
    """
    mean, std, y = _regression(mean=mean, std=std, y=y)
    if (smallest := std.detach().min()) <= 0:
        raise ValueError(f"std: expected values > 0, got {smallest.item():.4g}. Pass a standard deviation.")
    z = (y - mean) / std
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    score = std * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    return _reduce(score, reduction)


@explained
def pinball(prediction: Tensor, y: Tensor, level: float, reduction: Reduction = "mean") -> Tensor:
    """Pinball (quantile) loss ``max(τ (y - q), (τ - 1) (y - q))``, in the target's units.

    Koenker and Bassett, "Regression quantiles", 1978. Twice its integral over ``τ`` is the CRPS.

    Args:
        prediction: Predicted quantile ``q``, any shape.
        y: Targets of the same shape.
        level: The quantile's level ``τ`` in ``(0, 1)``; 0.5 gives half the absolute error.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, values are not finite, or ``level`` is outside ``(0, 1)``.
    """
    prediction, y = _regression(prediction=prediction, y=y)
    if not 0 < level < 1:
        raise ValueError(f"level: expected a quantile level in (0, 1), got {level}. Pass 0.95 for 95 %.")
    error = y - prediction
    return _reduce(torch.maximum(level * error, (level - 1) * error), reduction)


@explained
def interval_coverage(lower: Tensor, upper: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Share of targets inside the closed interval ``[lower, upper]`` (PICP); compare with the nominal level.

    Args:
        lower: Lower ends, any shape; ``-inf`` is allowed.
        upper: Upper ends of the same shape; ``inf`` is allowed.
        y: Targets of the same shape.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or zeros and ones in the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, NaN, or a lower end above its upper end.
    """
    lower, upper = _interval(lower, upper)
    y = check_float(y, "y", finite=True)
    check_same_shape(y, "y", lower.shape, "lower")
    return _reduce(((lower <= y) & (y <= upper)).to(y.dtype), reduction)


@explained
def interval_width(lower: Tensor, upper: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Width ``upper - lower`` of prediction intervals (mean: MPIW), in the target's units.

    Args:
        lower: Lower ends, any shape; ``-inf`` is allowed.
        upper: Upper ends of the same shape; ``inf`` is allowed.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or the shape of ``lower``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, NaN, or a lower end above its upper end.
    """
    lower, upper = _interval(lower, upper)
    return _reduce(upper - lower, reduction)


def _classification(probs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    probs = check_probs(probs)
    return probs, check_labels(y, probs.shape[:-1], probs.shape[-1])


def _regression(**arguments: Tensor) -> tuple[Tensor, ...]:
    """Check arguments by name; the first one sets the shape."""
    checked = {name: check_float(x, name, finite=True) for name, x in arguments.items()}
    first = next(iter(checked))
    for name, x in checked.items():
        check_same_shape(x, name, checked[first].shape, first)
    return tuple(checked.values())


def _interval(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    lower = check_float(lower, "lower", finite=False)
    upper = check_float(upper, "upper", finite=False)
    check_same_shape(upper, "upper", lower.shape, "lower")
    if crossed := int((lower > upper).sum()):
        raise ValueError(f"lower: expected lower <= upper, violated at {crossed} of {lower.numel()} intervals.")
    return lower, upper


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction: expected 'mean' or 'none', got {reduction!r}.")
    return values.mean() if reduction == "mean" else values
