r"""The log predictive density of held-out data.

.. math::  \frac1M \sum_{i=1}^M \omega_i \log \frac1K \sum_{k=1}^K p(y_i \mid x_i, w_k), \qquad w_k \sim q,

with the weights :math:`\omega_i` that the loader yields (else 1). Masked targets have density 1, and the mean is
over all M rows, as in the ELBO per datum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.finite import weighted
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.substitution import SubstituteMessenger, unscaled_score
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["log_predictive", "log_predictive_sum"]


def log_predictive(
    model: nn.Module,
    guide: Guide,
    batches: Iterable[Any],
    device: torch.device | str | None = None,
    num_samples: int = 8,
    reader: Reader | None = None,
) -> float:
    """Mean log predictive density, with the same random seed at every call so that epochs can be compared.

    Args:
        model: The model.
        guide: The posterior.
        batches: What a loader yields.
        device: Where to move them.
        num_samples: Number K of posterior draws.
        reader: How to read what it yields (:meth:`Batch.read`).

    Returns:
        Nats per datum.

    Raises:
        ValueError: If there is no batch, or one holds inputs that are not finite or weights that are negative.
    """
    total, rows = log_predictive_sum(model, guide, batches, device, num_samples, reader)
    if rows == 0:
        raise ValueError("validation: it yielded no batch.")
    return total / rows


@torch.no_grad()
def log_predictive_sum(
    model: nn.Module,
    guide: Guide,
    batches: Iterable[Any],
    device: torch.device | str | None = None,
    num_samples: int = 8,
    reader: Reader | None = None,
) -> tuple[float, int]:
    """The sum over the data instead of the mean, and the number of data; arguments as for :func:`log_predictive`."""
    with random_state.seeded(0, next(guide.parameters()).device):
        draws = Draws.of(guide.sample(num_samples))
    total, rows = 0.0, 0
    with evaluating(model), frozen_buffers(model):
        for number, raw in enumerate(batches):
            batch = Batch.read(raw, device, reader, argument="validation")
            batch.check(number)
            by_draw = [_log_likelihood(model, draws.at(index), batch, index == 0) for index in range(num_samples)]
            by_row = torch.stack(by_draw).logsumexp(0) - math.log(num_samples)
            total += float(weighted(by_row, batch.weight).sum())
            rows += batch.rows
    return total, rows


def _log_likelihood(model: nn.Module, draw: Draws, batch: Batch, checks: bool) -> Tensor:
    """``log p(y | x, w)`` of each row, ``[B]``, unweighted; 0 where it is masked."""
    with installed_buffers(model, draw.buffers), SubstituteMessenger(draw) as run:
        if isinstance(model, SupervisedModel):  # without the data plate, whose size is that of the training data
            outputs = model.predictive(batch.inputs)
            check = model.likelihood.check_targets if checks else model.likelihood.check_shape
            check(outputs, batch.targets)
            return model.likelihood(outputs).log_prob(batch.targets)
        model(*batch.args, **batch.kwargs)
    rows = [unscaled_score(message).reshape(batch.rows, -1).sum(-1) for message in run.observed]
    return torch.stack(rows).sum(0)
