"""Predictions of known distributions, made without a network."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.model.likelihoods import Categorical, Normal
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.predictions import ClassPrediction


def class_prediction(logits: Tensor, keep: bool = True) -> ClassPrediction:
    """Of logits ``[K, N, C]``, one network a draw."""
    reduction = Categorical().reduction(len(logits), keep=keep, max_bytes=1)
    reduction.add({"log_probs": logits.log_softmax(-1)})
    found = reduction.finish(None)
    assert isinstance(found, ClassPrediction)
    return found


def normal_prediction(loc: Tensor, scale: Tensor) -> MomentPrediction:
    """Of means and noise scales ``[K, N, ...]``."""
    reduction = Normal().reduction(len(loc), keep=True, max_bytes=1)
    reduction.add({"loc": loc, "scale": scale})
    found = reduction.finish(None)
    assert isinstance(found, MomentPrediction)
    return found


def overconfident(
    seed: int, num_data: int = 1000, num_draws: int = 3, num_classes: int = 4, sharpness: float = 3.0
) -> tuple[ClassPrediction, Tensor]:
    """Draws whose logits are ``sharpness`` times too large, and labels of their first draw before that."""
    generator = torch.Generator().manual_seed(seed)
    base = 1.5 * torch.randn(num_data, num_classes, generator=generator, dtype=torch.float64)
    spread = 0.5 * torch.randn(num_draws, num_data, num_classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(base.softmax(-1), 1, generator=generator).squeeze(-1)
    return class_prediction(sharpness * (base + spread)), labels
