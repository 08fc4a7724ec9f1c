r"""The weighted mixture of operations, :math:`\sum_k \alpha_k o_k`, and its gradient in few passes over memory.

The gradient by the weight :math:`\alpha_k` is the inner product of the output's gradient and :math:`o_k`, which
automatic differentiation would first write out element by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["mixture"]


def mixture(weights: Tensor, outputs: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    """``Σ_j weights[indices[j]] · outputs[j]``.

    Args:
        weights: The weights ``[K]``.
        outputs: Tensors of one shape.
        indices: Each output's weight.
    """
    is_uniform = all(output.dtype == weights.dtype for output in outputs)
    if is_uniform and weights.requires_grad and torch.is_grad_enabled():
        try:
            return _Mixture.apply(weights, indices, *outputs)
        except RuntimeError:
            pass  # functions like this one cannot be called under torch.func's transforms
    single = weights.unbind()
    total = single[indices[0]] * outputs[0]
    for index, output in zip(indices[1:], outputs[1:], strict=True):
        # Under autocasting some operations return half precision and others do not: sums promote, addcmul does not.
        total = torch.addcmul(total, output, single[index]) if is_uniform else total + single[index] * output
    return total


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, indices: Sequence[int], *outputs: Tensor) -> Tensor:
        ctx.indices = indices
        ctx.save_for_backward(weights, *outputs)
        single = weights.unbind()
        total = single[indices[0]] * outputs[0]
        for index, output in zip(indices[1:], outputs[1:], strict=True):
            total.addcmul_(output, single[index])
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *outputs = ctx.saved_tensors
        by_weight = torch.zeros_like(weights)
        single, slopes, flat = weights.unbind(), by_weight.unbind(), gradient.reshape(-1)
        by_output: list[Tensor | None] = []
        for index, output, needed in zip(ctx.indices, outputs, ctx.needs_input_grad[2:], strict=True):
            torch.dot(flat, output.reshape(-1), out=slopes[index])
            by_output.append(gradient * single[index] if needed else None)
        return by_weight, None, *by_output
