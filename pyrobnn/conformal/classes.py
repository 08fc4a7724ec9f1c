"""Split conformal sets of classes, marginal, by class, by group, and under covariate shift."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from pyrobnn.conformal.base import ConformalPredictor
from pyrobnn.conformal.class_scores import LAC, ClassScore
from pyrobnn.conformal.order_statistics import threshold
from pyrobnn.core.arguments import check_int
from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction
from pyrobnn.prediction.held_out import check_classes, held_out_classes

__all__ = ["ConformalClassifier"]


@explained
class ConformalClassifier(ConformalPredictor):
    """Sets of classes that hold the label of a new datum with the stated probability, if data are exchangeable.

    ::

        sets = ConformalClassifier(APS()).conformalize(held_out, labels).predict_set(prediction)

    Args:
        score: How strange a label is (:mod:`pyrobnn.conformal.class_scores`); None is :class:`LAC`.
        confidence_level: The share of labels that sets are to hold.
        class_conditional: Have a threshold for each class, so that the level holds for each class.
        randomized: Draw the uniform numbers of APS, RAPS and SAPS; they are 1 otherwise, which covers a little more.
        seed: Of the uniform numbers; calibration and prediction have different ones.

    Raises:
        TypeError: If ``score`` is no score of classes.
        ValueError: If ``confidence_level`` is not between 0 and 1, or ``seed`` no int of at least 0.
    """

    def __init__(
        self,
        score: ClassScore | None = None,
        *,
        confidence_level: float = 0.9,
        class_conditional: bool = False,
        randomized: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(confidence_level)
        if score is not None and not isinstance(score, ClassScore):
            raise TypeError(f"score: expected a score of classes such as LAC() or APS(), got {score!r}.")
        check_int("seed", seed, 0, 2**62)
        self.score = LAC() if score is None else score
        self.class_conditional, self.randomized, self.seed = bool(class_conditional), bool(randomized), seed

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
        """Scores the labels of held-out data, which must be neither training data nor those of a calibrator.

        Args:
            prediction: Class probabilities ``[N, C]``.
            targets: Labels ``[N]``; None takes those that came with the prediction's loader.
            groups: An integer ``[N]`` for each datum; the level then holds in each group.
            weights: Density ratios ``[N]`` of new to calibration inputs, under covariate shift.

        Returns:
            The predictor.

        Raises:
            TypeError: If the prediction is none of classes.
            ValueError: If something does not fit, or a class has no data where ``class_conditional``.
        """
        prediction, labels, mask = held_out_classes(_one_label(prediction), targets)
        classes = prediction.mean.shape[-1]
        if self.class_conditional:
            _refuse_others(groups, weights)
            if absent := sorted(set(range(classes)) - set(labels.unique().tolist())):
                raise ValueError(f"targets: thresholds by class need data of each, and there are none of {absent[0]}.")
            groups = labels.to(mask.device)
        elif groups is not None:
            groups = _selected(groups, mask, "groups")
        weights = None if weights is None else _selected(weights, mask, "weights")
        scores = self._scores(prediction, 0)[mask].gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        self.keep(scores, groups, weights)
        return self

    @explained
    @torch.no_grad()
    def predict_set(
        self, prediction: Prediction, *, groups: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Which classes each input's set holds, bool ``[N, C]``; a set may be empty, or hold all of them.

        Args:
            prediction: Class probabilities ``[N, C]``.
            groups: The group ``[N]`` of each input, if calibration had groups.
            weights: The density ratio ``[N]`` of each input, if calibration had weights.

        Raises:
            RuntimeError: If the predictor was not conformalized.
            TypeError: If the prediction is none of classes.
            ValueError: If something does not fit.
        """
        prediction = _one_label(prediction)
        self.check_fitted("conformalize")
        scores = self._scores(prediction, 1)
        if not self.class_conditional:
            limits = self.thresholds(len(scores), groups, weights).unsqueeze(-1)
            return scores <= limits.to(scores.device)
        _refuse_others(groups, weights)
        classes = int(self.groups.max()) + 1
        if classes != scores.shape[-1]:
            raise ValueError(f"prediction: calibration had {classes} classes, got {scores.shape[-1]}.")
        by_class = [
            threshold(self.scores[self.groups == c], self.confidence_level, f" of class {c}") for c in range(classes)
        ]
        return scores <= torch.stack(by_class).to(scores.device)

    def _scores(self, prediction: ClassPrediction, stage: int) -> Tensor:
        probs = prediction.mean.double()
        u = torch.ones(len(probs), 1, dtype=torch.float64, device="cpu")
        if self.randomized:
            generator = torch.Generator(device="cpu").manual_seed(2 * self.seed + stage)
            u = torch.rand(u.shape, generator=generator, dtype=torch.float64, device="cpu")
        return self.score(probs, u.to(probs.device))


def _one_label(prediction: Prediction) -> ClassPrediction:
    found = check_classes(prediction)
    if found.mean.dim() != 2:
        raise ValueError(
            f"prediction: expected one label for each input, probabilities [N, C], got {tuple(found.mean.shape)}; "
            "labels of one input are not exchangeable with those of others."
        )
    return found


def _refuse_others(groups: Tensor | None, weights: Tensor | None) -> None:
    if groups is not None or weights is not None:
        raise ValueError("groups: class_conditional=True has groups of its own; pass neither groups nor weights.")


def _selected(values: Tensor, mask: Tensor, name: str) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(values).__name__}.")
    if values.shape != mask.shape:
        raise ValueError(f"{name}: expected shape {tuple(mask.shape)}, one for each row, got {tuple(values.shape)}.")
    return values[mask.to(values.device)]
