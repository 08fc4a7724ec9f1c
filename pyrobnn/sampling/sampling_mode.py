"""The state in which a model is sampled: evaluation mode, nothing trained, no statistics of a batch.

Under batch statistics the data of a batch depend on each other, so there is no likelihood to sample from; with dropout
the potential itself would be random. Chains therefore run in evaluation mode, as predictions do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from torch import nn

from pyrobnn.core.denormals import denormals_as_zero
from pyrobnn.training.running_statistics import BATCH_NORMS

__all__ = ["BatchNormPolicy", "sampled", "untrained"]

BatchNormPolicy = Literal["refuse", "freeze"]


@contextlib.contextmanager
def sampled(model: Any, batch_norm: BatchNormPolicy) -> Iterator[None]:
    """Evaluation mode for the block; each module's own mode is restored after it.

    Args:
        model: The model.
        batch_norm: Whether to refuse BatchNorm layers, or to use their running statistics as constants.

    Raises:
        ValueError: If the model has such layers and they are refused, or have no running statistics.
    """
    if batch_norm not in ("refuse", "freeze"):
        raise ValueError(f"batch_norm: expected 'refuse' or 'freeze', got {batch_norm!r}.")
    module = model if isinstance(model, nn.Module) else nn.Module()
    modules = dict(module.named_modules())
    for name, layer in modules.items():
        if isinstance(layer, BATCH_NORMS):
            if layer.running_mean is None:
                raise ValueError(
                    f"model: the BatchNorm layer {name!r} has no running statistics (track_running_stats=False), so "
                    "that the data of a batch always depend on each other; use another norm."
                )
            if batch_norm == "refuse":
                raise ValueError(
                    f"batch_norm: the layer {name!r} normalizes by the statistics of a batch, under which there is no "
                    "posterior to sample. Train the network first and pass batch_norm='freeze' to use its running "
                    "statistics as constants, or use a norm without batch statistics, such as GroupNorm."
                )
    modes = [(layer, layer.training) for layer in modules.values()]
    try:
        for layer in modules.values():
            # cuDNN differentiates recurrent layers in training mode only; without dropout the modes are one.
            layer.training = isinstance(layer, nn.RNNBase) and layer.dropout == 0
        with denormals_as_zero():
            yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextlib.contextmanager
def untrained(model: Any) -> Iterator[None]:
    """No gradients of the model's own parameters in the block: what has no prior is a constant.

    Guides are to be built outside: they determine which priors are fixed.
    """
    module = model if isinstance(model, nn.Module) else nn.Module()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
