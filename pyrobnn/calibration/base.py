r"""What calibrators of class probabilities share.

A calibrator is a map c of probability vectors, fitted to held-out predictions and their labels. ``on`` says what it is
applied to: to the averaged probabilities, or to those of each draw before they are averaged,

.. math::  \text{"mean"}: \; c\Big(\frac1K \sum_k p_k\Big), \qquad \text{"draws"}: \; \frac1K \sum_k c(p_k).

With ``"draws"`` the result is a mixture over draws like any other, and its uncertainty is decomposed anew. A calibrated
mean is no mixture of known draws: its entropy is computed anew, and the epistemic part keeps its share of it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Literal, Self

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction
from pyrobnn.model.likelihoods.reductions import ClassReduction
from pyrobnn.prediction.held_out import check_classes, held_out_classes

__all__ = ["ClassCalibrator", "On"]

On = Literal["mean", "draws"]


class ClassCalibrator(Fitted):
    """Base class: :meth:`fit` on held-out data, then a pure function from prediction to prediction.

    Subclasses implement :meth:`fit_to` and :meth:`transform`, and name their buffers to the constructor.

    Args:
        names: The buffers.
        on: ``"mean"`` calibrates the averaged probabilities; ``"draws"`` those of each draw, which the prediction must
            have kept (``predict(..., return_draws=True)``).

    Raises:
        ValueError: If ``on`` is neither.
    """

    needs_all_classes = True
    """Whether each class must occur among the labels."""

    def __init__(self, *names: str, on: On = "mean") -> None:
        super().__init__(*names)
        if on not in ("mean", "draws"):
            raise ValueError(f"on: expected 'mean' or 'draws', got {on!r}.")
        self.on = on

    @abstractmethod
    def fit_to(self, log_probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The buffers by name.

        Args:
            log_probs: Log probabilities ``[K, n, C]`` of K draws, or of the mean ``[1, n, C]``, in double precision.
            labels: Labels ``[n]``.
        """

    @abstractmethod
    def transform(self, log_probs: Tensor) -> Tensor:
        """Calibrated log probabilities ``[..., C]`` of given ones."""

    @explained
    def fit(self, prediction: Prediction, targets: Tensor | None = None) -> Self:
        """Fits the calibrator to held-out data: on data of the training it would learn the training's overconfidence.

        Args:
            prediction: Predicted class probabilities ``[N, …, C]``.
            targets: Labels ``[N, …]``; None takes those that came with the prediction's loader.

        Returns:
            The calibrator.

        Raises:
            TypeError: If ``prediction`` is no prediction of classes.
            ValueError: If labels do not fit, a class has none, or the draws are needed and were not kept.
        """
        prediction, labels, mask = held_out_classes(prediction, targets)
        classes = prediction.mean.shape[-1]
        absent = sorted(set(range(classes)) - set(labels.unique().tolist()))
        if self.needs_all_classes and absent:
            raise ValueError(
                f"targets: {type(self).__name__} needs data of each of the {classes} classes, and there are none of "
                f"class {absent[0]}; take more data, or TemperatureScaling."
            )
        found = self.fit_to(self._log_probs(prediction)[:, mask].double(), labels)
        self.store(len(labels), **found)
        return self

    @explained
    @torch.no_grad()
    def forward(self, prediction: Prediction) -> ClassPrediction:
        """The calibrated prediction.

        Raises:
            RuntimeError: If the calibrator is not fitted.
            TypeError: If ``prediction`` is no prediction of classes.
            ValueError: If it has other classes, or the draws are needed and were not kept.
        """
        self.check_fitted("fit")
        prediction = check_classes(prediction)
        given = self._log_probs(prediction)
        self._check_classes(given.shape[-1])
        found = self.transform(given.double()).to(given.dtype)
        return _of_draws(prediction, found) if self.on == "draws" else _of_mean(prediction, found[0])

    def extra_repr(self) -> str:
        """What it is applied to, and to how many data it was fitted."""
        return f"on={self.on!r}, num_data={int(self.num_data)}"

    def _log_probs(self, prediction: ClassPrediction) -> Tensor:
        """``[K, N, …, C]``, or ``[1, N, …, C]`` of the mean; finite."""
        if self.on == "draws":
            if prediction.parameters is None:
                raise ValueError(
                    "prediction: on='draws' needs the probabilities of each draw; pass return_draws=True to predict, "
                    "or calibrate on='mean'."
                )
            found = prediction.parameters["log_probs"]
        else:
            log_mean = prediction.mean.log() if prediction.log_mean is None else prediction.log_mean
            found = log_mean.unsqueeze(0)
        return found.clamp_min(math.log(torch.finfo(torch.float64).tiny))

    def _check_classes(self, classes: int) -> None:
        for name, tensor in self.named_buffers():
            if tensor.dim() and len(tensor) != classes:
                raise ValueError(
                    f"prediction: {type(self).__name__} was fitted to {len(tensor)} classes ({name}), got {classes}."
                )


def _of_draws(prediction: ClassPrediction, log_probs: Tensor) -> ClassPrediction:
    reduction = ClassReduction(prediction.likelihood, len(log_probs), keep=True, max_bytes=1)  # type: ignore[arg-type]
    reduction.add({"log_probs": log_probs})
    return replace(reduction.finish(prediction.targets), is_of_training_data=prediction.is_of_training_data)


def _of_mean(prediction: ClassPrediction, log_mean: Tensor) -> ClassPrediction:
    share = torch.where(prediction.total > 0, prediction.epistemic / prediction.total, 0.0).clamp(0.0, 1.0)
    return prediction.of_mean(log_mean, share)
