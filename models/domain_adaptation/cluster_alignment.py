r"""CAT, cluster alignment with a teacher: classes are clusters, and those of both domains have one center.

.. math::  L_c(X) = \frac1{|X|^2} \sum_{ij} \begin{cases} d(f_i, f_j) & y_i = y_j \\ \max(0,\, m - d(f_i, f_j)) &
           \text{else}\end{cases}, \qquad
           L_a = \frac1K \sum_k \| \bar f_k^{(s)} - \bar f_k^{(t)} \|^2

with the source's labels and a teacher's classes of the targets. The loss is
:math:`L_c(X_s) + L_c(X_t) + L_a`. Classes that are missing in one of the batches have no center there and are left out
of :math:`L_a`. Deng, Luo & Zhu, *Cluster Alignment with a Teacher for Unsupervised Domain Adaptation* (2019). The
distance d is the squared one, summed over features; the published code takes the mean over features
(``distance="mean"``), at which its margin of 30 is meant.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from models.domain_adaptation.batches import AlignmentLoss, DomainBatch
from models.domain_adaptation.class_means import class_means
from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_positive

__all__ = ["ClusterAlignment", "ClusterRamp", "clustering_loss"]

Distance = Literal["sum", "mean"]


class ClusterRamp:
    r"""The weight of the published code: 0 before ``start``, then :math:`w e^{-10 (1 - u)}` with u from 0 to 1.

    Args:
        start: The step at which it begins.
        length: Steps until it is whole.
        final: The factor w.
    """

    def __init__(self, start: int, length: int, final: float = 1.0) -> None:
        check_positive("length", length)
        self.start, self.length, self.final = start, length, final

    def __call__(self, step: int) -> float:
        """The weight at a training step."""
        if step < self.start:
            return 0.0
        return self.final * math.exp(-10.0 * (1.0 - min((step - self.start) / self.length, 1.0)))


class ClusterAlignment(AlignmentLoss):
    """The clustering loss of both domains, and the distance of their class means.

    Args:
        weight: Factor, or its schedule (:class:`ClusterRamp` begins when the teacher knows something).
        margin: Distance m that features of two classes should have.
        distance: Whether squared distances are summed over features, as in the paper, or averaged, as in its code.
        on: Cluster ``"features"`` or ``"logits"``.

    Raises:
        ValueError: If ``weight`` is negative, ``margin`` not positive, or an option unknown.
    """

    name = "cluster_alignment"
    needs_teacher = True

    def __init__(
        self,
        weight: schedules.Schedule = 1.0,
        *,
        margin: float = 30.0,
        distance: Distance = "mean",
        on: Literal["features", "logits"] = "features",
    ) -> None:
        super().__init__(weight)
        check_positive("margin", margin)
        if distance not in ("sum", "mean"):
            raise ValueError(f"distance: expected 'sum' or 'mean', got {distance!r}.")
        if on not in ("features", "logits"):
            raise ValueError(f"on: expected 'features' or 'logits', got {on!r}.")
        self.margin, self.distance, self.on = margin, distance, on

    def __call__(self, batch: DomainBatch, weight: float) -> Tensor:
        """The loss times its weight."""
        if self.on == "features":
            source, target = batch.source.features, batch.target.features
        else:
            source, target = batch.source.logits, batch.target.logits
        labels, taught = batch.labels, batch.pseudo_labels()
        clusters = self._clusters(source, labels) + self._clusters(target, taught)
        means, there = class_means(source, labels, batch.source.logits.shape[-1])
        others, here = class_means(target, taught, batch.source.logits.shape[-1])
        gaps = _reduced((means - others).square(), self.distance)
        both = there & here
        return weight * (clusters + gaps[both].sum() / both.sum().clamp(min=1))

    def _clusters(self, features: Tensor, labels: Tensor) -> Tensor:
        return clustering_loss(features, labels, self.margin, self.distance)


def clustering_loss(features: Tensor, labels: Tensor, margin: float, distance: Distance = "sum") -> Tensor:
    """The loss :math:`L_c` of one domain.

    Args:
        features: Features ``[B, F]``.
        labels: Classes ``[B]``.
        margin: Distance that two classes should have.
        distance: How squared distances are reduced over features.

    Returns:
        A scalar: the mean over all ``B²`` pairs, those of a row with itself among them.
    """
    squares = features.square().sum(1)
    gaps = (squares.unsqueeze(1) + squares - 2.0 * features @ features.mT).clamp(min=0.0)
    if distance == "mean":
        gaps = gaps / features.shape[1]
    same = labels.unsqueeze(1) == labels
    return gaps.where(same, (margin - gaps).clamp(min=0.0)).mean()


def _reduced(squares: Tensor, distance: Distance) -> Tensor:
    return squares.sum(-1) if distance == "sum" else squares.mean(-1)
