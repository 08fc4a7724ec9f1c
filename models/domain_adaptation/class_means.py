"""Means of features by class."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["class_means"]


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The means, differentiable in the features.

    Args:
        features: Features ``[B, F]``.
        labels: Classes ``[B]``, from 0 to below ``classes``.
        classes: Their number K.

    Returns:
        Means ``[K, F]``, 0 for classes without a row, and which classes have one ``[K]``.
    """
    counts = torch.bincount(labels, minlength=classes)
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    return sums / counts.clamp(min=1).unsqueeze(1), counts > 0
