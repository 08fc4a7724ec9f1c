r"""Adaptive conformal inference: intervals for a time series that need no exchangeable data, right in the long run.

The level is moved after each target, so that misses are as frequent as they should be:

.. math::  \alpha_{t+1} = \alpha_t + \gamma \, (\alpha - \mathrm{err}_t), \qquad
           \Big| \frac1T \sum_t \mathrm{err}_t - \alpha \Big| \le \frac{\max(\alpha, 1 - \alpha) + \gamma}{\gamma T}.

The second holds for any sequence of targets whatever. At :math:`\alpha_t \le 0` the interval is everything, at
:math:`\alpha_t \ge 1` nothing. Scores of targets that were seen join those of calibration.

Gibbs and Candès, "Adaptive conformal inference under distribution shift", NeurIPS 2021.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from pyrobnn.conformal.real_scores import AbsoluteResidual, RealScore
from pyrobnn.core.arguments import check_positive, check_positive_int, check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.prediction.held_out import check_real, held_out_real

__all__ = ["AdaptiveConformalRegressor"]

_ROUNDING = 1e-9


@explained
class AdaptiveConformalRegressor(Fitted):
    """Intervals of a series of targets, each made before its target is seen.

    ::

        predictor = AdaptiveConformalRegressor().conformalize(held_out)
        lower, upper = predictor.follow(prediction, targets)  # in the order of time
        lower, upper = predictor.predict_interval(next_prediction)  # at the level reached

    Args:
        score: How strange a target is (:mod:`pyrobnn.conformal.real_scores`); None is :class:`AbsoluteResidual`.
        confidence_level: The share of targets that intervals are to hold.
        step: The step γ of the level; a large one follows shifts faster, and its intervals vary more.
        window: How many of the latest scores count; None counts all.

    Attributes:
        scores: The scores that count, the oldest first ``[n]``.
        level: The level :math:`\\alpha_t` that was reached.

    Raises:
        TypeError: If ``score`` is no score of real-valued targets.
        ValueError: If ``confidence_level`` is not between 0 and 1, ``step`` or ``window`` not positive.
    """

    scores: Tensor
    level: Tensor

    def __init__(
        self,
        score: RealScore | None = None,
        *,
        confidence_level: float = 0.9,
        step: float = 0.01,
        window: int | None = None,
    ) -> None:
        super().__init__("scores", "level")
        if score is not None and not isinstance(score, RealScore):
            raise TypeError(f"score: expected a score such as AbsoluteResidual(), got {score!r}.")
        check_probability("confidence_level", confidence_level)
        check_positive("step", step)
        if window is not None:
            check_positive_int("window", window)
        self.score = AbsoluteResidual() if score is None else score
        self.confidence_level, self.step, self.window = confidence_level, step, window

    @explained
    @torch.no_grad()
    def conformalize(self, prediction: Prediction, targets: Tensor | None = None) -> Self:
        """Scores the targets that come before the series, and starts at the level stated.

        Args:
            prediction: The prediction ``[N]`` or ``[N, 1]``, in the order of time.
            targets: Targets of its shape; None takes those that came with the prediction's loader. None may be missing.

        Returns:
            The predictor.

        Raises:
            TypeError: If the prediction is none of real-valued targets.
            ValueError: If something does not fit, an input has several targets, or a target is missing.
        """
        found, y = _one_target(*held_out_real(prediction, targets))
        self._keep(self.score.score(found, y).double().flatten(), 1.0 - self.confidence_level)
        return self

    @explained
    @torch.no_grad()
    def predict_interval(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, each of the mean's shape, of targets to come, all at the level reached.

        Raises:
            RuntimeError: If the predictor was not conformalized.
            TypeError: If the prediction is none of real-valued targets.
            ValueError: If an input has several targets.
        """
        found, _ = _one_target(check_real(prediction), None)
        self.check_fitted("conformalize")
        limit = _limit(self.scores.sort().values, float(self.level))
        return self.score.interval(found, torch.full_like(found.mean, limit))

    @explained
    @torch.no_grad()
    def follow(self, prediction: Prediction, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Goes through targets in the order of time: an interval is made, then its target is seen and the level moves.

        Args:
            prediction: The prediction ``[N]`` or ``[N, 1]``, in the order of time.
            targets: Targets of its shape; None takes those that came with the prediction's loader. None may be missing.

        Returns:
            Lower and upper ends, each of the mean's shape.

        Raises:
            RuntimeError: If the predictor was not conformalized.
            TypeError: If the prediction is none of real-valued targets.
            ValueError: If something does not fit, an input has several targets, or a target is missing.
        """
        found, y = _one_target(*held_out_real(prediction, targets))
        self.check_fitted("conformalize")
        new = self.score.score(found, y).double().flatten().to(self.scores.device)
        alpha, kept, limits = float(self.level), self.scores, []
        for index, value in enumerate(new.tolist()):
            limits.append(_limit(kept.sort().values, alpha))
            alpha += self.step * (1.0 - self.confidence_level - float(value > limits[-1]))
            kept = self._latest(torch.cat([kept, new[index : index + 1]]))
        self._keep(kept, alpha)
        return self.score.interval(found, found.mean.new_tensor(limits).reshape(found.mean.shape))

    def extra_repr(self) -> str:
        """The level, the step, and the number of data."""
        return f"confidence_level={self.confidence_level:g}, step={self.step:g}, num_data={int(self.num_data)}"

    def _keep(self, scores: Tensor, alpha: float) -> None:
        if bool(scores.isnan().any()):
            raise ValueError("prediction: scores of the data are NaN.")
        scores = self._latest(scores)
        self.store(len(scores), scores=scores, level=scores.new_tensor(alpha))

    def _latest(self, scores: Tensor) -> Tensor:
        return scores if self.window is None else scores[-self.window :]


def _limit(ordered: Tensor, alpha: float) -> float:
    """The score up to which targets belong to the interval of level 1 - alpha."""
    if alpha >= 1:
        return -math.inf
    rank = math.ceil((len(ordered) + 1) * (1.0 - alpha) - _ROUNDING)
    return math.inf if alpha <= 0 or rank > len(ordered) else float(ordered[max(rank, 1) - 1])


def _one_target(prediction: MomentPrediction, y: Tensor | None) -> tuple[MomentPrediction, Tensor]:
    """Refuses several targets of an input, which would have one level between them, and missing ones."""
    if math.prod(prediction.mean.shape[1:]) != 1:
        raise ValueError(
            "prediction: expected one target for each time, a mean [N] or [N, 1], got "
            f"{tuple(prediction.mean.shape)}; follow each series by a predictor of its own."
        )
    if y is not None and bool(y.isnan().any()):
        raise ValueError("targets: a target is missing; leave such times out.")
    return prediction, prediction.mean if y is None else y
