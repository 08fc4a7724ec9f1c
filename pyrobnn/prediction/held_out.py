"""Predictions of data that were held out, with their targets: what calibration and conformal sets are fitted to."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction

__all__ = ["check_classes", "check_real", "held_out_classes", "held_out_real"]

_Kind = TypeVar("_Kind", bound=Prediction)


def check_classes(prediction: Prediction) -> ClassPrediction:
    """Refuses what is no prediction of classes, and one that holds NaN.

    Raises:
        TypeError: If it is none.
        ValueError: If it holds no inputs, or NaN.
    """
    return _checked(prediction, ClassPrediction, "class probabilities (a ClassPrediction of predict)")


def check_real(prediction: Prediction) -> MomentPrediction:
    """Refuses what is no prediction of real-valued targets, and one that holds NaN.

    Raises:
        TypeError: If it is none.
        ValueError: If it holds no inputs, or NaN.
    """
    return _checked(prediction, MomentPrediction, "a prediction of real-valued targets (a MomentPrediction of predict)")


def held_out_classes(prediction: Prediction, targets: Tensor | None) -> tuple[ClassPrediction, Tensor, Tensor]:
    """A prediction of classes, the labels that were observed ``[n]``, and the mask that selects them.

    Args:
        prediction: The prediction ``[N, …, C]``.
        targets: Labels ``[N, …]``; None takes those of the prediction.

    Raises:
        TypeError: If there is no prediction of classes, or no tensor of labels.
        ValueError: If inputs are known to be of the training data, shapes or labels do not fit, or no label was
            observed.
    """
    prediction = check_classes(prediction)
    _refuse_training_data(prediction)
    y = _targets(prediction, targets, prediction.mean.shape[:-1])
    if y.is_complex():
        raise TypeError(f"targets: expected integer labels, got a tensor of {y.dtype}.")
    mask = _observed(prediction, y)
    labels, classes = y[mask], prediction.mean.shape[-1]
    found = labels.long()
    wrong = (found != labels) | (found < 0) | (found >= classes)
    if bool(wrong.any()):
        raise ValueError(
            f"targets: expected labels from 0 to {classes - 1}, got {labels[wrong][0].item():g}; leave such data out."
        )
    return prediction, found, mask


def held_out_real(prediction: Prediction, targets: Tensor | None) -> tuple[MomentPrediction, Tensor]:
    """A prediction of real-valued targets and the targets ``[N, …]``; NaN among them was not observed.

    Args:
        prediction: The prediction ``[N, …]``.
        targets: Targets of the same shape; None takes those of the prediction.

    Raises:
        TypeError: If there is no such prediction, or no floating-point tensor of targets.
        ValueError: If inputs are known to be of the training data, shapes do not fit, or targets are not finite though
            the likelihood allows none to be missing.
    """
    prediction = check_real(prediction)
    _refuse_training_data(prediction)
    y = _targets(prediction, targets, prediction.mean.shape)
    if y.is_complex():
        raise TypeError(f"targets: expected a tensor of real numbers, got one of {y.dtype}.")
    y = y.to(prediction.mean)
    if not bool(y[_observed(prediction, y)].isfinite().all()):
        raise ValueError("targets: they hold NaN or infinite numbers; leave such data out.")
    return prediction, y


def _checked(prediction: Prediction, kind: type[_Kind], expected: str) -> _Kind:
    if not isinstance(prediction, kind):
        raise TypeError(f"prediction: expected {expected}, got {type(prediction).__name__}.")
    if not len(prediction):
        raise ValueError("prediction: it holds no inputs.")
    wrong = ~prediction.mean.isfinite()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"prediction: its mean at input {row} is NaN or infinite; leave such inputs out.")
    return prediction


def _refuse_training_data(prediction: Prediction) -> None:
    if prediction.is_of_training_data:
        raise ValueError(
            "prediction: some of its inputs are rows that the posterior was trained on, where it is better than on new "
            "ones; predict data that were held out (set prediction.is_of_training_data = False if you mean it)."
        )


def _targets(prediction: Prediction, targets: Tensor | None, expected: torch.Size) -> Tensor:
    targets = prediction.targets if targets is None else targets
    if targets is None:
        raise ValueError("targets: the prediction came without any; pass them, or predict from a loader of (x, y).")
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: expected a tensor, got {type(targets).__name__}.")
    if targets.shape != expected:
        raise ValueError(f"targets: expected shape {tuple(expected)} for this prediction, got {tuple(targets.shape)}.")
    return targets.to(prediction.mean.device)


def _observed(prediction: Prediction, y: Tensor) -> Tensor:
    mask = prediction.likelihood.observed_mask(y)
    if mask is None:
        return torch.ones_like(y, dtype=torch.bool)
    if not bool(mask.any()):
        raise ValueError("targets: none of them was observed.")
    return mask
