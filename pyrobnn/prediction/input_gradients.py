r"""The gradient of a posterior mean with respect to the inputs, with the graph of one draw at a time.

.. math::  \nabla_x \log \frac1K \sum_k e^{\ell_k(x)} = \sum_k r_k \nabla_x \ell_k(x), \qquad
           r_k = \frac{e^{\ell_k(x)}}{\sum_j e^{\ell_j(x)}}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.prediction.runners import model_outputs

__all__ = ["mixture_gradient"]


def mixture_gradient(
    model: nn.Module, draws: Iterable[Mapping[str, Tensor]], x: Tensor, log_prob: Callable[[Tensor], Tensor]
) -> Tensor:
    """The gradient of the log of the mean over draws, with respect to each input; rows must not see each other.

    Args:
        model: The model, in evaluation mode and with its buffers kept.
        draws: Draws ``{site: [k, *site shape]}``, chunk by chunk.
        x: Inputs ``[N, ...]``.
        log_prob: From the network's outputs ``[N, ...]`` to a log density of each input ``[N]``, called while the
            draw's values are substituted.

    Returns:
        The gradient, of the shape of ``x``; 0 where the density is 0 under all draws.

    Raises:
        ValueError: If it is not finite.
    """
    total, weight = torch.zeros_like(x), torch.zeros_like(x[(...,) + (0,) * (x.dim() - 1)])
    largest = torch.full_like(weight, -math.inf)
    shape = (-1, *[1] * (x.dim() - 1))
    for chunk in draws:
        several = Draws.of(chunk)
        for index in range(len(next(iter(several.values())))):
            draw, leaf = several.at(index), x.detach().clone().requires_grad_()
            with torch.enable_grad(), installed_buffers(model, draw.buffers), SubstituteMessenger(draw):
                value = log_prob(model_outputs(model, leaf))
                (slope,) = torch.autograd.grad(value.sum(), leaf)
            value = value.detach().to(weight)
            peak = torch.maximum(largest, value)
            old, new = ((given - peak).exp().nan_to_num() for given in (largest, value))
            total = total * old.reshape(shape) + slope * new.reshape(shape)
            weight, largest = weight * old + new, peak
    if not bool(total.isfinite().all()):
        raise ValueError("x: the gradient of the loss with respect to the inputs is not finite.")
    return total / weight.clamp_min(torch.finfo(weight.dtype).tiny).reshape(shape)
