r"""Functions of a posterior mean and their gradients with respect to the inputs, with the graph of one draw at a time.

What is averaged over the K draws is given by its logarithm :math:`\ell_k(x)`: the density of a target, or the
probabilities of all classes. With the pooled :math:`\ell = \log \frac1K \sum_k e^{\ell_k}` and a function h of it,

.. math::  \nabla_x h(\ell(x)) = \sum_k \frac{\partial h}{\partial \ell}\, r_k \nabla_x \ell_k(x), \qquad
           r_k = \frac{e^{\ell_k(x)}}{\sum_j e^{\ell_j(x)}}

One number for each input needs one pass over the draws: the sum is scaled again when a larger :math:`\ell_k` comes. Of
several numbers, the derivative of h must be known first, so a pass without gradients comes before; one draw needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.prediction.differentiability import explain_missing_gradient
from pyrobnn.prediction.runners import model_outputs

__all__ = ["mixture_gradient", "pooled_gradient", "pooled_value"]

Summary = Callable[[Tensor, int], Tensor]
"""From the network's outputs ``[N, ...]`` under draw k, and k, to what is averaged, as logarithms ``[N, ...]``."""

Value = Callable[[Tensor], Tensor]
"""From what was averaged, as logarithms ``[N, ...]``, to one number for each input ``[N]``."""


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
        ValueError: If it is not finite, or the network is not differentiable.
    """
    return pooled_gradient(model, draws, x, lambda outputs, _: log_prob(outputs), lambda pooled: pooled)[1]


def pooled_gradient(
    model: nn.Module, draws: Iterable[Mapping[str, Tensor]], x: Tensor, summary: Summary, value: Value
) -> tuple[Tensor, Tensor]:
    """A function of the mean over draws, and its gradient with respect to each input; rows must not see each other.

    Args:
        model: The model, in evaluation mode and with its buffers kept.
        draws: Draws ``{site: [k, *site shape]}``, chunk by chunk.
        x: Inputs ``[N, ...]``.
        summary: What is averaged, as logarithms: ``[N]`` for one pass, ``[N, ...]`` for two. It is called while the
            draw's values are substituted.
        value: The function of the average.

    Returns:
        The values ``[N]``, and the gradient of their sum, of the shape of ``x``.

    Raises:
        ValueError: If the gradient is not finite, or the network is not differentiable.
    """
    singles = _singles(draws)
    first = next(singles)
    leaf, logs = _run(model, first, x, summary, 0)
    second = next(singles, None)
    if second is None:
        with torch.enable_grad():
            found = value(logs)
        return found.detach(), _finite(_gradient(model, first, found.sum(), leaf))
    if logs.dim() > 1:
        return _in_two_passes(model, draws, x, summary, value)
    shape = (-1, *[1] * (x.dim() - 1))
    slope = _gradient(model, first, logs.sum(), leaf)
    largest = logs.detach()
    weight = (largest - largest).exp().nan_to_num()  # 1, and 0 where the density is 0
    total, count = slope * weight.reshape(shape).to(slope), 1
    while second is not None:
        leaf, logs = _run(model, second, x, summary, count)
        slope = _gradient(model, second, logs.sum(), leaf)
        logs = logs.detach()
        peak = torch.maximum(largest, logs)
        old, new = ((given - peak).exp().nan_to_num() for given in (largest, logs))
        total = total * old.reshape(shape).to(total) + slope * new.reshape(shape).to(total)
        weight, largest = weight * old + new, peak
        second, count = next(singles, None), count + 1
    total = _finite(total) / weight.clamp_min(torch.finfo(weight.dtype).tiny).reshape(shape).to(total)
    pooled = (largest + weight.log() - math.log(count)).requires_grad_()
    with torch.enable_grad():
        found = value(pooled)
    (outer,) = torch.autograd.grad(found.sum(), pooled)
    return found.detach(), outer.reshape(shape).to(total) * total


@torch.no_grad()
def pooled_value(
    model: nn.Module, draws: Iterable[Mapping[str, Tensor]], x: Tensor, summary: Summary, value: Value
) -> Tensor:
    """The values ``[N, ...]`` alone; arguments as for :func:`pooled_gradient`."""
    return value(_pooled(model, draws, x, summary))


def _in_two_passes(
    model: nn.Module, draws: Iterable[Mapping[str, Tensor]], x: Tensor, summary: Summary, value: Value
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        pooled = _pooled(model, draws, x, summary)
    pooled.requires_grad_()
    with torch.enable_grad():
        found = value(pooled)
    (outer,) = torch.autograd.grad(found.sum(), pooled)
    pooled, total, count = pooled.detach(), torch.zeros_like(x), 0
    for count, draw in enumerate(_singles(draws), 1):
        leaf, logs = _run(model, draw, x, summary, count - 1)
        share = (logs.detach() - pooled).exp().nan_to_num() * outer
        with torch.enable_grad():
            total += _gradient(model, draw, (share * logs.nan_to_num(neginf=0.0)).sum(), leaf)
    return found.detach(), _finite(total / count)


def _pooled(model: nn.Module, draws: Iterable[Mapping[str, Tensor]], x: Tensor, summary: Summary) -> Tensor:
    """The logarithm of the mean, without a graph."""
    total, count = None, 0
    for count, draw in enumerate(_singles(draws), 1):
        with installed_buffers(model, draw.buffers), SubstituteMessenger(draw, direct=True):
            logs = summary(model_outputs(model, x.clone()), count - 1)
        total = logs if total is None else torch.logaddexp(total, logs)
    assert total is not None
    return total - math.log(count)


def _singles(draws: Iterable[Mapping[str, Tensor]]) -> Iterator[Draws]:
    """The draws, one at a time."""
    for chunk in draws:
        several = Draws.of(chunk)
        for index in range(len(next(iter(several.values())))):
            yield several.at(index)


def _run(model: nn.Module, draw: Draws, x: Tensor, summary: Summary, index: int) -> tuple[Tensor, Tensor]:
    """A leaf for the inputs, and the summary under a draw."""
    leaf = x.detach().requires_grad_()  # no network can write into a leaf
    with torch.enable_grad(), installed_buffers(model, draw.buffers), SubstituteMessenger(draw, direct=True):
        return leaf, summary(model_outputs(model, leaf), index)


def _gradient(model: nn.Module, draw: Draws, total: Tensor, leaf: Tensor) -> Tensor:
    """The gradient with respect to the leaf.

    Raises:
        ValueError: If there is none; it names the module that stops it.
    """
    if total.requires_grad:
        (slope,) = torch.autograd.grad(total, leaf, allow_unused=True)
        if slope is not None:
            return slope
    with installed_buffers(model, draw.buffers), SubstituteMessenger(draw):
        raise ValueError(explain_missing_gradient(model, lambda x: model_outputs(model, x), leaf.detach()))


def _finite(gradient: Tensor) -> Tensor:
    if not bool(gradient.sum().isfinite()) and not bool(gradient.isfinite().all()):  # the sum is cheap
        raise ValueError("x: the gradient of the loss with respect to the inputs is not finite.")
    return gradient
