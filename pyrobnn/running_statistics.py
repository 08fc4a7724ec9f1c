r"""BatchNorm statistics under the posterior.

Running statistics collected in training belong to the draws of that time, and an average over draws is not the
statistics of any of them. :func:`recalibrate_batch_norm` estimates them afresh, as the plain average over batches
and posterior draws, each batch under a new draw (as SWA re-estimates them for its averaged weights, Izmailov et
al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pyrobnn.guides.base import Guide
from pyrobnn.prediction.runners import model_outputs
from pyrobnn.substitution import Substitution

__all__ = ["recalibrate_batch_norm"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, guide: Guide, loader: Iterable[Any], *, num_draws: int = 1) -> None:
    """Re-estimates the running statistics of every BatchNorm layer, in place.

    Args:
        model: The model; only its BatchNorm buffers change.
        guide: The posterior to draw weights from.
        loader: Yields inputs or pairs ``(x, y)``; each batch should be as large as in training.
        num_draws: Posterior draws per batch.

    Raises:
        ValueError: If the model has no BatchNorm layer with running statistics, or the loader is empty.
    """
    layers = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats]
    if not layers:
        raise ValueError("model: it has no BatchNorm layer with running statistics, so nothing can be recalibrated.")
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    before = [layer.num_batches_tracked.clone() for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over all passes
            layer.train()
        for batch in loader:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            for _ in range(num_draws):
                with Substitution({name: value[0] for name, value in guide.sample(1).items()}):
                    model_outputs(model, x)
        if int(layers[0].num_batches_tracked) == 0:
            raise ValueError("loader: it yielded no batch, so the statistics would stay empty.")
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum
        for layer, count in zip(layers, before, strict=True):
            layer.num_batches_tracked.copy_(torch.maximum(layer.num_batches_tracked, count))
        for module, training in modes:
            module.training = training
