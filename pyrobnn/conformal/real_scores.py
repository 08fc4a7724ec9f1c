r"""Nonconformity scores of real-valued targets, and the interval of targets whose score is at most q.

.. math::
    \text{absolute residual:} &\quad |y - \mu| \\
    \text{normalized residual:} &\quad |y - \mu| / \sigma \\
    \text{quantiles:} &\quad \max(l - y,\; y - h) \\
    \text{PIT:} &\quad |F(y) - \tfrac12|

with the predictive mean, a standard deviation (the predictive one, or its epistemic part, which only a posterior has),
the central predictive interval :math:`[l, h]`, and the predictive distribution F. The third is conformalized quantile
regression (Romano, Patterson and Candès, NeurIPS 2019), the last distributional conformal prediction (Chernozhukov,
Wüthrich and Zhu, PNAS 2021); :mod:`pyrobnn.conformal.density_score` has the density. Any score gives the coverage; a
good one gives short intervals where they can be.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative, check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.prediction.held_out import check_real

__all__ = ["AbsoluteResidual", "NormalizedResidual", "PITScore", "QuantileResidual", "RealScore"]


class RealScore:
    """Base class: an interval around which the score is measured, and its unit."""

    def center(self, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor | float]:
        """Lower and upper end where the score is 0, and the length of a unit of the score, each ``[N, ...]``."""
        raise NotImplementedError

    def score(self, prediction: Prediction, y: Tensor) -> Tensor:
        """Scores ``[N, ...]`` of targets, larger for stranger ones."""
        lower, upper, unit = self.center(prediction)
        return torch.maximum(lower - y, y - upper) / unit

    def interval(self, prediction: Prediction, limit: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the interval of scores up to ``limit``; its middle where there are none."""
        lower, upper, unit = self.center(prediction)
        middle = (lower + upper) / 2
        return torch.minimum(lower - limit * unit, middle), torch.maximum(upper + limit * unit, middle)


class AbsoluteResidual(RealScore):
    """The distance from the predictive mean: intervals of one length."""

    def center(self, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor | float]:
        """The mean twice, and 1."""
        return prediction.mean, prediction.mean, 1.0


@explained
class NormalizedResidual(RealScore):
    """The distance from the predictive mean in standard deviations: long intervals where the prediction is unsure.

    Args:
        by: ``"std"``, the predictive standard deviation, or ``"epistemic"``, the part that more data would remove.
        floor: Added to it, in the target's units; for ``"epistemic"``, which may be 0, it must be positive.

    Raises:
        ValueError: If ``by`` is neither, or ``floor`` is negative, or 0 for ``"epistemic"``.
    """

    def __init__(self, by: Literal["std", "epistemic"] = "std", floor: float = 0.0) -> None:
        if by not in ("std", "epistemic"):
            raise ValueError(f"by: expected 'std' or 'epistemic', got {by!r}.")
        check_non_negative("floor", floor)
        if by == "epistemic" and not floor:
            raise ValueError("floor: expected a positive number for by='epistemic', which may be 0, got 0.")
        self.by, self.floor = by, floor

    def center(self, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor | float]:
        """The mean twice, and the standard deviation."""
        variance = prediction.total if self.by == "std" else prediction.epistemic
        unit = variance.clamp_min(0).sqrt() + self.floor
        if not bool((unit > 0).all()):
            raise ValueError("prediction: its standard deviation is 0 somewhere; pass a floor to NormalizedResidual.")
        return prediction.mean, prediction.mean, unit


@explained
class QuantileResidual(RealScore):
    """The distance from the central predictive interval: conformalized quantiles.

    Args:
        level: The interval's level; best near ``confidence_level``.

    Raises:
        ValueError: If ``level`` is not between 0 and 1.
    """

    def __init__(self, level: float = 0.9) -> None:
        check_probability("level", level)
        self.level = level

    def center(self, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor | float]:
        """The interval, and 1."""
        return *prediction.interval(self.level), 1.0


class PITScore(RealScore):
    """How far the probability of at most the target is from a half: intervals are central ones of another level.

    They follow the predictive distribution in shape and length, at each input. The prediction needs quantiles: that of
    a likelihood whose distribution has a cdf, with its draws kept.
    """

    def score(self, prediction: Prediction, y: Tensor) -> Tensor:
        """Scores ``[N, ...]``, from 0 to a half."""
        return (check_real(prediction).cdf(y) - 0.5).abs()

    def interval(self, prediction: Prediction, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Quantiles at a half less and a half more than ``limit``; infinite from a half on, the median below 0."""
        given = check_real(prediction)
        reach = limit.expand(given.mean.shape).double()
        everything = reach >= 0.5
        reach = torch.where(everything, 0.0, reach.clamp_min(0.0))
        low, high = given.quantile_at(torch.stack([0.5 - reach, 0.5 + reach]))
        return low.masked_fill(everything, -torch.inf), high.masked_fill(everything, torch.inf)
