r"""The log predictive density of held-out data.

.. math::  \frac1M \sum_{i=1}^M \log \frac1K \sum_{k=1}^K p(y_i \mid x_i, w_k), \qquad w_k \sim q.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn import random_state
from pyrobnn.bayesianize import evaluating, frozen_buffers
from pyrobnn.draws import Draws, installed_buffers
from pyrobnn.guides.base import Guide
from pyrobnn.substitution import Substitution
from pyrobnn.supervised import SupervisedModel
from pyrobnn.training.checks import unpack

__all__ = ["log_predictive"]


@torch.no_grad()
def log_predictive(
    model: nn.Module,
    guide: Guide,
    batches: Iterable[Any],
    device: torch.device | str | None = None,
    num_samples: int = 8,
) -> float:
    """Mean log predictive density, with the same draws' noise at every call so that epochs compare.

    Args:
        model: The model.
        guide: The posterior.
        batches: Pairs ``(x, y)``.
        device: Where to move them.
        num_samples: Number K of posterior draws.

    Returns:
        Nats per datum.

    Raises:
        ValueError: If there is no batch.
    """
    with random_state.seeded(0, next(guide.parameters()).device):
        draws = Draws.of(guide.sample(num_samples))
    total, rows = 0.0, 0
    with evaluating(model), frozen_buffers(model):
        for batch in batches:
            x, y = unpack(batch, device)
            by_draw = [_log_likelihood(model, draws.at(index), x, y) for index in range(num_samples)]
            total += float((torch.stack(by_draw).logsumexp(0) - math.log(num_samples)).sum())
            rows += len(y)
    if rows == 0:
        raise ValueError("validation: it yielded no batch.")
    return total / rows


def _log_likelihood(model: nn.Module, draw: Draws, x: Any, y: Tensor) -> Tensor:
    """``log p(y | x, w)`` of each row."""
    with installed_buffers(model, draw.buffers), Substitution(draw) as run:
        if isinstance(model, SupervisedModel):  # past the data plate: held-out data may outnumber the training data
            outputs = model.predictive(x)
            model.likelihood.check_shape(outputs, y)
            return model.likelihood(outputs).log_prob(y)
        model(x, y)
    rows = [m["fn"].log_prob(m["value"]).reshape(len(y), -1).sum(-1) for m in run.observed]
    return torch.stack(rows).sum(0)
