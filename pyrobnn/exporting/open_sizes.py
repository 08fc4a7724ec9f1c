"""Layers written so that torch.func.vmap leaves the size of a batch open while it traces them.

torch's batching rules of some operators read sizes as Python numbers, which fixes them in a program. The same numbers
come from operators whose rules do not: a linear map of rows, a selection of rows, and the formulas of batch (in
evaluation mode) and layer normalization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["OpenSizes"]


class OpenSizes(TorchFunctionMode):
    """Replaces these operators in the block."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function, or what replaces it."""
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.dim() <= 2:
        return F.linear(input, weight, bias)
    rows = F.linear(input.reshape(-1, input.shape[-1]), weight, bias)
    return rows.reshape(*input.shape[:-1], rows.shape[-1])


def _embedding(input: Tensor, weight: Tensor, *options: Any, **named: Any) -> Tensor:
    return torch.index_select(weight, 0, input.reshape(-1)).reshape(*input.shape, weight.shape[-1])


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    shape = (1, -1, *(1,) * (input.dim() - 2))
    factor = (running_var + eps).rsqrt()
    factor = factor if weight is None else factor * weight
    found = (input - running_mean.reshape(shape)) * factor.reshape(shape)
    return found if bias is None else found + bias.reshape(shape)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    centered = input - input.mean(dims, keepdim=True)
    found = centered * (centered.square().mean(dims, keepdim=True) + eps).rsqrt()
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


_REPLACED: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
}
