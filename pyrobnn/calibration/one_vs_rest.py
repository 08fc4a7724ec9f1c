r"""Calibrators that learn a curve for each class, that class against the rest, and then normalize,

.. math::  c(p)_i = \frac{g_i(p_i)}{\sum_j g_j(p_j)},

uniform where all are 0. Of two classes there is one curve, that of class 1. The curves are of single averaged
probabilities, so these calibrators are not applied to draws.

Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pyrobnn.calibration.base import ClassCalibrator

__all__ = ["OneVsRest"]


class OneVsRest(ClassCalibrator):
    """Base class: subclasses implement :meth:`curve` and :meth:`evaluated`.

    Attributes:
        knots: Where the curves are known, ``[C or 1, M]``.
        values: The curves there, of as many rows.
    """

    knots: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__("knots", "values", on="mean")

    @abstractmethod
    def curve(self, probs: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """Knots and values of one class.

        Args:
            probs: Its probabilities ``[n]``, in double precision.
            hits: Whether it was the label, ``[n]``, 0 or 1.
        """

    @abstractmethod
    def evaluated(self, probs: Tensor, knots: Tensor, values: Tensor) -> Tensor:
        """The curve of one class at probabilities of any shape."""

    def fit_to(self, log_probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The curves of all classes, padded to one length by repeating the last knot."""
        probs = log_probs[0].exp()
        classes = range(probs.shape[-1]) if probs.shape[-1] > 2 else [1]
        curves = [self.curve(probs[:, c], (labels == c).to(probs)) for c in classes]
        longest = max(len(knots) for knots, _ in curves)

        def padded(row: Tensor) -> Tensor:
            return torch.cat([row, row[-1:].expand(longest - len(row))])

        return {
            "knots": torch.stack([padded(knots) for knots, _ in curves]),
            "values": torch.stack([padded(values) for _, values in curves]),
        }

    def transform(self, log_probs: Tensor) -> Tensor:
        """Log of the normalized curves; minus infinity where a curve is 0."""
        probs, knots, values = log_probs.exp(), self.knots.to(log_probs), self.values.to(log_probs)
        if len(knots) == 1:
            second = self.evaluated(probs[..., 1], knots[0], values[0])
            return torch.stack([1 - second, second], -1).log()
        rows = [self.evaluated(probs[..., c], knots[c], values[c]) for c in range(len(knots))]
        found = torch.stack(rows, -1)
        total = found.sum(-1, keepdim=True)
        return torch.where(total > 0, found / total.clamp_min(1e-300), 1 / found.shape[-1]).log()

    def _check_classes(self, classes: int) -> None:
        fitted = max(len(self.knots), 2)
        if classes != fitted:
            raise ValueError(f"prediction: {type(self).__name__} was fitted to {fitted} classes, got {classes}.")
