"""Split conformal intervals of real-valued targets, marginal, by group, and under covariate shift."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from pyrobnn.conformal.base import ConformalPredictor
from pyrobnn.conformal.real_scores import AbsoluteResidual, RealScore
from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.prediction.held_out import check_real, held_out_real

__all__ = ["ConformalRegressor"]


@explained
class ConformalRegressor(ConformalPredictor):
    """Intervals that hold the target of a new datum with the stated probability, if data are exchangeable.

    Of several targets of an input each has a threshold of its own, and the level holds for each by itself.

    Args:
        score: How strange a target is (:mod:`pyrobnn.conformal.real_scores`); None is :class:`AbsoluteResidual`.
        confidence_level: The share of targets that intervals are to hold.

    Raises:
        TypeError: If ``score`` is no score of real-valued targets.
        ValueError: If ``confidence_level`` is not between 0 and 1.
    """

    def __init__(self, score: RealScore | None = None, *, confidence_level: float = 0.9) -> None:
        super().__init__(confidence_level)
        if score is not None and not isinstance(score, RealScore):
            raise TypeError(f"score: expected a score such as AbsoluteResidual(), got {score!r}.")
        self.score = AbsoluteResidual() if score is None else score

    @explained
    @torch.no_grad()
    def conformalize(
        self,
        prediction: Prediction,
        targets: Tensor | None = None,
        *,
        groups: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Self:
        """Scores the targets of held-out data, which must not be training data.

        Args:
            prediction: The prediction ``[N, ...]``.
            targets: Targets of its shape; None takes those that came with the prediction's loader. None may be missing.
            groups: An integer ``[N]`` for each datum; the level then holds in each group.
            weights: Density ratios ``[N]`` of new to calibration inputs, under covariate shift.

        Returns:
            The predictor.

        Raises:
            TypeError: If the prediction is none of real-valued targets.
            ValueError: If something does not fit, or a target is missing.
        """
        found, y = held_out_real(prediction, targets)
        if bool(y.isnan().any()):
            raise ValueError("targets: a target is missing; leave such rows out of the calibration data.")
        self.keep(self.score.score(found, y), groups, weights)
        return self

    @explained
    @torch.no_grad()
    def predict_interval(
        self, prediction: Prediction, *, groups: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, each ``[N, ...]``; infinite where calibration data are too few.

        Args:
            prediction: The prediction ``[N, ...]``.
            groups: The group ``[N]`` of each input, if calibration had groups.
            weights: The density ratio ``[N]`` of each input, if calibration had weights.

        Raises:
            RuntimeError: If the predictor was not conformalized.
            TypeError: If the prediction is none of real-valued targets.
            ValueError: If something does not fit.
        """
        found = check_real(prediction)
        self.check_fitted("conformalize")
        if found.mean.shape[1:] != self.scores.shape[1:]:
            raise ValueError(
                f"prediction: calibration had targets of shape {tuple(self.scores.shape[1:])} for each input, got "
                f"{tuple(found.mean.shape[1:])}."
            )
        limits = self.thresholds(len(found), groups, weights).to(found.mean)
        return self.score.interval(found, limits)
