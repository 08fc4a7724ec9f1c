r"""Scores of point predictions and quantiles of real-valued targets.

They take a prediction and targets ``y`` of the same shape; shapes are never broadcast. With ``reduction="mean"`` a
score is the 0-d mean over all targets, with ``"none"`` one value each. ``weight`` has the weights of the examples
``[N]`` in the mean, :math:`\sum_i \omega_i s_i / \sum_i \omega_i`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import Reduction, check_regression, check_row_weights, reduced

__all__ = ["TargetMoments", "pinball", "r2", "rmse"]

_ROUNDING = 1e-14  # of a mean in double precision


@explained
def rmse(mean: Tensor, y: Tensor, reduction: Reduction = "mean", *, weight: Tensor | None = None) -> Tensor:
    """Root mean squared error, in the target's units.

    Args:
        mean: Predictive mean, any shape.
        y: Targets of the same shape.
        reduction: ``"mean"``, or ``"none"`` for the *squared* errors under the root (target's units squared).
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d root of the mean, or the squared errors in the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, values are not finite, or weights are wrong.
    """
    mean, y = check_regression(mean=mean, y=y)
    squared = reduced((mean - y).square(), reduction, weight)
    return squared if reduction == "none" else squared.sqrt()


@explained
def r2(mean: Tensor, y: Tensor, *, weight: Tensor | None = None) -> Tensor:
    r"""Coefficient of determination :math:`R^2 = 1 - \sum_i (y_i - \mu_i)^2 / \sum_i (y_i - \bar y)^2`.

    With several targets it is that of each target alone, averaged, so that their units do not matter (scikit-learn's
    ``r2_score``). It is 1 for perfect predictions, 0 for the mean of these targets, and negative for worse ones.

    Args:
        mean: Predictive means ``[N, ...]``.
        y: Targets of the same shape.
        weight: Weights of the examples ``[N]``.

    Returns:
        0-d.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, values are not finite, weights are wrong, or a target is constant: then R² is
            undefined.
    """
    mean, y = check_regression(mean=mean, y=y)
    if not y.dim():
        raise ValueError("y: expected targets [N, ...], got a scalar.")
    each = torch.ones(len(y)) if weight is None else check_row_weights(weight, len(y))
    shaped = each.to(y.device, torch.float64).reshape(-1, *(1,) * (y.dim() - 1)).expand_as(y)
    found = TargetMoments.of(mean.double(), y.double(), shaped)
    if bool(found.is_constant.any()):
        raise ValueError("y: R² is undefined, because a target has the same value in all examples.")
    return found.r2.to(mean.dtype)


class TargetMoments(NamedTuple):
    """What R² needs of the examples so far, for each target ``[...]``.

    Attributes:
        weight: Sum of the weights.
        mean: Weighted mean of the targets.
        spread: Weighted sum of squared deviations from it.
        error: Weighted sum of squared errors of the predictions.
    """

    weight: Tensor
    mean: Tensor
    spread: Tensor
    error: Tensor

    @classmethod
    def of(cls, mean: Tensor, y: Tensor, weight: Tensor) -> TargetMoments:
        """Those of predictions, targets and weights ``[N, ...]`` in double precision; weight 0 leaves a target out."""
        total = weight.sum(0)
        y = torch.where(weight > 0, y, 0.0)
        center = (weight * y).sum(0) / total.clamp_min(torch.finfo(total.dtype).tiny)
        spread = (weight * (y - center).square()).sum(0)
        error = (weight * torch.where(weight > 0, mean - y, 0.0).square()).sum(0)
        return cls(total, center, spread, error)

    def merged(self, other: TargetMoments) -> TargetMoments:
        """Those of both together (Chan et al. 1983)."""
        total = self.weight + other.weight
        share = other.weight / total.clamp_min(torch.finfo(total.dtype).tiny)
        offset = other.mean - self.mean
        spread = self.spread + other.spread + self.weight * share * offset.square()
        return TargetMoments(total, self.mean + share * offset, spread, self.error + other.error)

    @property
    def is_constant(self) -> Tensor:
        """Whether a target does not vary, but for rounding, so that its R² is undefined."""
        return self.spread <= self.weight * (_ROUNDING * self.mean).square()

    @property
    def r2(self) -> Tensor:
        """The mean over targets, 0-d; NaN if one of them is constant."""
        return torch.where(self.is_constant, torch.nan, 1.0 - self.error / self.spread).mean()


@explained
def pinball(
    prediction: Tensor, y: Tensor, level: float, reduction: Reduction = "mean", *, weight: Tensor | None = None
) -> Tensor:
    """Pinball (quantile) loss ``max(τ (y - q), (τ - 1) (y - q))``, in the target's units.

    It is proper: the true quantile minimizes it in expectation. Koenker and Bassett, "Regression quantiles", 1978.
    Twice its integral over ``τ`` is the CRPS.

    Args:
        prediction: Predicted quantile ``q``, any shape.
        y: Targets of the same shape.
        level: The quantile's level ``τ`` in ``(0, 1)``; 0.5 gives half the absolute error.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, values are not finite, ``level`` is outside ``(0, 1)``, or weights are wrong.
    """
    prediction, y = check_regression(prediction=prediction, y=y)
    check_probability("level", level)
    error = y - prediction
    return reduced(torch.maximum(level * error, (level - 1) * error), reduction, weight)
