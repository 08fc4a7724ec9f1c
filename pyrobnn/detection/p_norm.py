r"""MaxLogit-pNorm: the largest of the centered logits, in units of their p-norm.

.. math::  c(x) = \max_c \frac{z_c - \bar z}{\lVert z - \bar z \rVert_p}

It ignores the scale of the logits, by which some networks are sure of everything. p is chosen on held-out data by the
area under the risk-coverage curve; where no p is better than the largest probability, that is taken, as published.

Centered logits are centered log probabilities, which a prediction keeps: :math:`z = \log \bar p`, up to the constant
that centering removes. Of one draw these are the network's logits; of several those of the averaged probabilities.

Cattelan and Silva, "How to fix a broken confidence estimator", UAI 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.metrics.selective import aurc
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction
from pyrobnn.prediction.held_out import check_classes, held_out_classes

__all__ = ["MaxLogitPNorm"]


@explained
class MaxLogitPNorm(Fitted):
    """An uncertainty by normalized logits, whose p is found from held-out data.

    ::

        score = MaxLogitPNorm().fit(held_out, labels)
        uncertainty = score(prediction)  # [N]; also Abstention(score=score)

    Args:
        orders: The p that are tried, positive.

    Attributes:
        order: The p chosen, 0-d; 0 where the largest probability itself was best.

    Raises:
        ValueError: If ``orders`` holds none, or one that is not positive.
    """

    order: Tensor

    def __init__(self, orders: Sequence[float] = tuple(range(1, 11))) -> None:
        super().__init__("order")
        if not isinstance(orders, Sequence) or isinstance(orders, str | bytes) or not len(orders):
            raise ValueError(f"orders: expected one p or more, such as [1, 2, 4, 8], got {orders!r}.")
        for order in orders:
            check_positive("orders", order)
        self.orders = tuple(orders)

    @explained
    @torch.no_grad()
    def fit(self, prediction: Prediction, targets: Tensor | None = None) -> Self:
        """Chooses p on held-out data.

        Args:
            prediction: Predicted class probabilities ``[N, …, C]``.
            targets: Labels ``[N, …]``; None takes those that came with the prediction's loader.

        Returns:
            The score.

        Raises:
            TypeError: If ``prediction`` is no prediction of classes.
            ValueError: If labels do not fit, or no answer is wrong, or all are, so that no p is better than another.
        """
        found, labels, mask = held_out_classes(prediction, targets)
        wrong = found.predicted[mask] != labels
        if not 0 < int(wrong.sum()) < len(wrong):
            kind = "wrong" if bool(wrong.any()) else "right"
            raise ValueError(f"targets: all {len(wrong)} answers are {kind}, which does not say what p is best.")
        best, least = 0.0, float(aurc(found.least_confidence[mask], wrong))
        for order in self.orders:
            area = float(aurc(_uncertainty(found, order)[mask], wrong))
            if area < least:
                best, least = float(order), area
        self.store(len(wrong), order=found.mean.new_tensor(best, dtype=torch.float64))
        return self

    @explained
    @torch.no_grad()
    def forward(self, prediction: Prediction) -> Tensor:
        """The uncertainty ``[N, …]``: minus the normalized logit, or one minus the largest probability.

        Raises:
            RuntimeError: If it is not fitted.
            TypeError: If ``prediction`` is no prediction of classes.
        """
        self.check_fitted("fit")
        found, order = check_classes(prediction), float(self.order)
        return found.least_confidence if order == 0.0 else _uncertainty(found, order)

    def extra_repr(self) -> str:
        """The p chosen, and from how many data."""
        chosen = float(self.order) if int(self.num_data) else None
        return f"order={chosen}, num_data={int(self.num_data)}"


def _uncertainty(prediction: ClassPrediction, order: float) -> Tensor:
    log_mean = prediction.mean.log() if prediction.log_mean is None else prediction.log_mean
    centered = log_mean.double().clamp_min(math.log(torch.finfo(torch.float64).tiny))
    centered = centered - centered.mean(-1, keepdim=True)
    size = centered.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)  # large p would overflow
    scaled = centered / size
    return -(scaled.amax(-1) / scaled.norm(order, -1).clamp_min(1e-12))
