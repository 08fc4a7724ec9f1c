r"""MSTN, moving semantic transfer network: running class centroids of both domains should be equal.

.. math::  C_k \leftarrow \theta C_k + (1 - \theta)\, \bar f_k, \qquad
           L = \sum_k \| C_k^{(s)} - C_k^{(t)} \|^2,

with the source's labels and pseudo labels of the targets. The gradient goes through the batch's means alone, not
through earlier ones. A centroid starts at the first mean of its class; until both domains have one, the class counts
nothing (the published code starts at 0, which pulls features there). Xie, Zheng, Chen & Chen, *Learning Semantic
Representations for Unsupervised Domain Adaptation* (2018), with :math:`\theta = 0.7` and a discriminator beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.domain_adaptation.batches import AlignmentLoss, DomainBatch
from models.domain_adaptation.class_means import class_means
from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_number

__all__ = ["CentroidAlignment"]


class CentroidAlignment(AlignmentLoss):
    """The squared distance of running class centroids, summed over classes.

    Args:
        weight: Factor, or its schedule.
        decay: The factor θ of what a centroid was.

    Raises:
        ValueError: If ``weight`` is negative or ``decay`` is not from 0 to below 1.
    """

    name = "centroid_alignment"
    needs_teacher = True

    def __init__(self, weight: schedules.Schedule = 1.0, *, decay: float = 0.7) -> None:
        super().__init__(weight)
        check_number("decay", decay, 0.0, 1.0, below=True)
        self.decay = decay
        self._centroids: Tensor | None = None

    def __call__(self, batch: DomainBatch, weight: float) -> Tensor:
        """The loss times its weight; centroids move unless the value alone is computed."""
        classes = batch.source.logits.shape[-1]
        pairs = [(batch.source.features, batch.labels), (batch.target.features, batch.pseudo_labels())]
        means, present = zip(*(class_means(features, labels, classes) for features, labels in pairs), strict=True)
        fresh, seen = torch.stack(means), torch.stack(present).unsqueeze(-1)
        old = torch.full_like(fresh, torch.nan) if self._centroids is None else self._centroids.to(fresh)
        known = old.isfinite()
        moved = torch.where(known, self.decay * old.nan_to_num() + (1.0 - self.decay) * fresh, fresh)
        current = torch.where(seen, moved, old)
        if torch.is_grad_enabled():
            self._centroids = current.detach()
        both = current.isfinite().all(-1).all(0)
        return weight * (current[0] - current[1])[both].square().sum()

    def state(self) -> dict[str, Tensor]:
        """The centroids ``[2, K, F]``, NaN where there is none yet."""
        return {} if self._centroids is None else {"centroids": self._centroids.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues with them."""
        self._centroids = state["centroids"].clone() if "centroids" in state else None
