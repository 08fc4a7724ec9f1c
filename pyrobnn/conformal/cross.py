r"""Cross-conformal intervals and sets (CV+, and jackknife+ with a fold for each datum): no data are set aside.

Each of K models is trained without one fold of the data and scores that fold. With :math:`s_i` the score of datum i by
the model :math:`k(i)` that did not see it, the interval of a new input has the ends

.. math::  \text{the } \lfloor \alpha (n + 1) \rfloor \text{-th smallest of } l_{k(i)} - s_i u_{k(i)}, \qquad
           \text{the } \lceil (1 - \alpha) (n + 1) \rceil \text{-th smallest of } h_{k(i)} + s_i u_{k(i)},

with the score's interval :math:`[l, h]` and unit u. The set of classes holds c if fewer than
:math:`(1 - \alpha) (n + 1)` of the :math:`s_i` are below the score that :math:`k(i)` gives to c. A new datum is covered
with probability :math:`1 - 2 \alpha` at least (up to :math:`\sqrt{2 / n}` for few folds), and in practice about
:math:`1 - \alpha`. The K models are an ensemble, so that its predictions come with it.

Barber, Candès, Ramdas and Tibshirani, "Predictive inference with the jackknife+", Annals of Statistics 2021; Romano,
Sesia and Candès, "Classification with valid and adaptive coverage", NeurIPS 2020.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from pyrobnn.conformal.class_scores import LAC, ClassScore
from pyrobnn.conformal.order_statistics import least_number
from pyrobnn.conformal.real_scores import AbsoluteResidual, RealScore
from pyrobnn.core.arguments import check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction
from pyrobnn.prediction.held_out import check_classes, check_real, held_out_classes, held_out_real

__all__ = ["CrossConformalClassifier", "CrossConformalRegressor"]

_ROUNDING = 1e-9
_MAX_ELEMENTS = 2**22


class _CrossConformal(Fitted):
    """The scores of all data by the models that did not see them, and the fold of each."""

    scores: Tensor
    folds: Tensor

    def __init__(self, confidence_level: float) -> None:
        super().__init__("scores", "folds")
        check_probability("confidence_level", confidence_level)
        self.confidence_level = confidence_level

    def extra_repr(self) -> str:
        """The level, and the number of data."""
        return f"confidence_level={self.confidence_level:g}, num_data={int(self.num_data)}"

    def _keep(self, by_fold: list[Tensor]) -> None:
        scores = torch.cat(by_fold)
        if bool(scores.isnan().any()):
            raise ValueError("predictions: scores of the data are NaN.")
        sizes = torch.tensor([len(part) for part in by_fold])
        self.store(
            len(scores), scores=scores, folds=torch.arange(len(by_fold)).repeat_interleave(sizes).to(scores.device)
        )
        if self._rank() > len(scores):
            warnings.warn(
                f"{len(scores)} data are too few for confidence_level={self.confidence_level:g}: their sets hold "
                f"everything. It takes at least {least_number(self.confidence_level)}.",
                stacklevel=4,
            )

    def _rank(self) -> int:
        return math.ceil((len(self.scores) + 1) * self.confidence_level - _ROUNDING)

    def _models(self, predictions: Sequence[Prediction]) -> Sequence[Prediction]:
        """One prediction of the new inputs for each fold."""
        self.check_fitted("conformalize")
        _sequence(predictions)
        folds = int(self.folds.max()) + 1
        if len(predictions) != folds:
            raise ValueError(f"predictions: expected one of each of the {folds} models, got {len(predictions)}.")
        for index, prediction in enumerate(predictions):
            if len(prediction) != len(predictions[0]):
                raise ValueError(
                    f"predictions: the models must predict the same inputs; that of fold {index} has "
                    f"{len(prediction)}, that of fold 0 {len(predictions[0])}."
                )
        return predictions

    def _row_parts(self, num_rows: int) -> list[slice]:
        """Parts of the new inputs that are compared with all scores at once."""
        rows = max(1, _MAX_ELEMENTS // self.scores.numel())
        return [slice(start, start + rows) for start in range(0, num_rows, rows)]


@explained
class CrossConformalRegressor(_CrossConformal):
    """Intervals from K models, each trained without one fold of the data.

    ::

        predictor = CrossConformalRegressor().conformalize(predictions_of_own_fold)  # K of them, with their targets
        lower, upper = predictor.predict_interval(predictions_of_new_inputs)  # by each of the K models

    Args:
        score: How strange a target is (:mod:`pyrobnn.conformal.real_scores`); None is :class:`AbsoluteResidual`.
        confidence_level: The level 1 - α.

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
    def conformalize(self, predictions: Sequence[Prediction], targets: Sequence[Tensor] | None = None) -> Self:
        """Scores each fold by the model that was trained without it.

        Args:
            predictions: K predictions, each of a fold by the model that did not see it.
            targets: The targets of each fold; None takes those that came with the loaders. None may be missing.

        Returns:
            The predictor.

        Raises:
            TypeError: If a prediction is none of real-valued targets.
            ValueError: If something does not fit, or there are fewer than two folds.
        """
        scores = []
        for prediction, given in _folds(predictions, targets):
            found, y = held_out_real(prediction, given)
            if bool(y.isnan().any()):
                raise ValueError("targets: a target is missing; leave such rows out.")
            scores.append(self.score.score(found, y))
        self._keep(scores)
        return self

    @explained
    @torch.no_grad()
    def predict_interval(self, predictions: Sequence[Prediction]) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, each ``[N, ...]``; infinite where data are too few.

        Args:
            predictions: Of the same N inputs by each of the K models, in the order of the folds.

        Raises:
            RuntimeError: If the predictor was not conformalized.
            TypeError: If a prediction is none of real-valued targets.
            ValueError: If something does not fit.
        """
        found = [check_real(prediction) for prediction in self._models(predictions)]
        shape = found[0].mean.shape
        if shape[1:] != self.scores.shape[1:]:
            raise ValueError(
                f"predictions: the folds had targets of shape {tuple(self.scores.shape[1:])} for each input, got "
                f"{tuple(shape[1:])}."
            )
        high = self._rank()
        low = len(self.scores) + 1 - high  # floor(α (n + 1))
        if high > len(self.scores):
            return found[0].mean.new_full(shape, -math.inf), found[0].mean.new_full(shape, math.inf)
        centers = [self.score.center(prediction) for prediction in found]
        first = torch.stack([lower for lower, _, _ in centers])
        last = torch.stack([upper for _, upper, _ in centers])
        unit = torch.stack([torch.as_tensor(u).to(first).expand(shape) for _, _, u in centers])
        scores = self.scores.to(first).unsqueeze(1)
        lower, upper = [], []
        for rows in self._row_parts(shape[0]):
            one = unit[:, rows][self.folds]
            lower.append((first[:, rows][self.folds] - scores * one).kthvalue(low, 0).values)
            upper.append((last[:, rows][self.folds] + scores * one).kthvalue(high, 0).values)
        bottom, top = torch.cat(lower), torch.cat(upper)
        return torch.minimum(bottom, top), torch.maximum(bottom, top)


@explained
class CrossConformalClassifier(_CrossConformal):
    """Sets of classes from K models, each trained without one fold of the data.

    Args:
        score: How strange a label is (:mod:`pyrobnn.conformal.class_scores`), not randomized; None is :class:`LAC`.
        confidence_level: The level 1 - α.

    Raises:
        TypeError: If ``score`` is no score of classes.
        ValueError: If ``confidence_level`` is not between 0 and 1.
    """

    def __init__(self, score: ClassScore | None = None, *, confidence_level: float = 0.9) -> None:
        super().__init__(confidence_level)
        if score is not None and not isinstance(score, ClassScore):
            raise TypeError(f"score: expected a score of classes such as LAC() or APS(), got {score!r}.")
        self.score = LAC() if score is None else score

    @explained
    @torch.no_grad()
    def conformalize(self, predictions: Sequence[Prediction], targets: Sequence[Tensor] | None = None) -> Self:
        """Scores each fold by the model that was trained without it.

        Args:
            predictions: K predictions ``[n, C]``, each of a fold by the model that did not see it.
            targets: The labels of each fold; None takes those that came with the loaders.

        Returns:
            The predictor.

        Raises:
            TypeError: If a prediction is none of classes.
            ValueError: If something does not fit, or there are fewer than two folds.
        """
        scores = []
        for prediction, given in _folds(predictions, targets):
            found, labels, mask = held_out_classes(prediction, given)
            scores.append(self._scores(found)[mask].gather(-1, labels.unsqueeze(-1)).squeeze(-1))
        self._keep(scores)
        return self

    @explained
    @torch.no_grad()
    def predict_set(self, predictions: Sequence[Prediction]) -> Tensor:
        """Which classes each input's set holds, bool ``[N, C]``.

        Args:
            predictions: Of the same N inputs by each of the K models, in the order of the folds.

        Raises:
            RuntimeError: If the predictor was not conformalized.
            TypeError: If a prediction is none of classes.
            ValueError: If something does not fit.
        """
        by_model = torch.stack([self._scores(check_classes(given)) for given in self._models(predictions)])
        below = torch.zeros(by_model.shape[1:], dtype=torch.int64, device=by_model.device)
        for fold, scores in enumerate(by_model):
            ordered = self.scores[self.folds == fold].sort().values.to(scores.device)
            below += torch.searchsorted(ordered, scores.contiguous())  # how many are strictly below
        return below < self.confidence_level * (len(self.scores) + 1) - _ROUNDING

    def _scores(self, prediction: ClassPrediction) -> Tensor:
        probs = prediction.mean.double()
        if probs.dim() != 2:
            raise ValueError(
                f"predictions: expected one label for each input, probabilities [N, C], got {tuple(probs.shape)}."
            )
        return self.score(probs, probs.new_ones(len(probs), 1))


def _sequence(predictions: object) -> None:
    if isinstance(predictions, Prediction) or not isinstance(predictions, Sequence):
        raise TypeError(
            f"predictions: expected a list of one prediction for each fold, got {type(predictions).__name__}."
        )


def _folds(
    predictions: Sequence[Prediction], targets: Sequence[Tensor] | None
) -> list[tuple[Prediction, Tensor | None]]:
    _sequence(predictions)
    if len(predictions) < 2:
        raise ValueError(f"predictions: expected those of at least two folds, got {len(predictions)}.")
    if targets is None:
        return [(prediction, None) for prediction in predictions]
    if isinstance(targets, Tensor) or len(targets) != len(predictions):
        given = "a tensor" if isinstance(targets, Tensor) else str(len(targets))
        raise ValueError(f"targets: expected a list of those of each of the {len(predictions)} folds, got {given}.")
    return list(zip(predictions, targets, strict=True))
