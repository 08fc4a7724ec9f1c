r"""Flipout: one draw of the noise, with its own random signs for each example.

.. math::  \Delta W_n = \Delta W \circ r_n s_n^\top, \qquad
           y_n = \bar W x_n + \big(\Delta W (x_n \circ s_n)\big) \circ r_n,

with :math:`r_n, s_n` uniform on :math:`\{-1, 1\}`. Noise that is symmetric about zero keeps its distribution, so each
example has an exact draw of its own; draws of two examples are uncorrelated. Calls of a layer in one run of the network
(time steps, tied layers) share the signs of their rows, matched by index, so that outputs of all calls are jointly
distributed as under one weight for each row. Costs a second product and the noise of one shared draw, a block of which
serves eight steps with ``MeanField(antithetic=True)``. Wen, Vicol, Ba, Tran & Grosse, *Flipout* (2018).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.estimators.base import Estimator
from pyrobnn.estimators.local_reparameterization import LocalReparameterization
from pyrobnn.estimators.weight import GaussianWeight, Layer

__all__ = ["Flipout", "random_signs"]


class Flipout(Estimator):
    """Random signs on inputs and outputs of linear and convolution layers."""

    name = "flipout"
    handles = LocalReparameterization.handles
    shares_noise: ClassVar[bool] = True

    def layer(self, layer: Layer, x: Tensor, weight: GaussianWeight, bias: Tensor | None) -> Any:
        """The layer at the mean plus its signed deviation; the bias shares the output's signs."""
        deviation = weight.deviations()
        b_loc, b_deviation = (bias.loc, bias.deviations()) if isinstance(bias, GaussianWeight) else (bias, None)
        channel = 1 if layer.spatial else -1
        rows = [] if x.dim() == 1 else [x.shape[0]]
        inputs, outputs = (0, 1) if layer.transposed else (1, 0)  # of the weight's dimensions
        signs_in = _signs(weight, inputs, [*rows, x.shape[channel]], x)
        mean = layer(x, weight.loc, b_loc)
        signs_out = _signs(weight, outputs, [*rows, mean.shape[channel]], x)
        weight.used("one weight for each row", *rows, signs_in.shape[-1], signs_out.shape[-1])
        if not isinstance(bias, GaussianWeight) or _takes(bias, signs_out):
            return torch.addcmul(
                mean,
                layer(x * _spread(signs_in, x, channel), deviation, b_deviation),
                _spread(signs_out, mean, channel),
            )
        deviating = layer(x * _spread(signs_in, x, channel), deviation) * _spread(signs_out, mean, channel)
        own = _signs(bias, "bias", list(signs_out.shape), x)
        return mean + deviating + _spread(bias.deviations() * own, mean, channel)


def _signs(weight: GaussianWeight, dimension: Hashable, shape: list[int], like: Tensor) -> Tensor:
    """Signs ``[B, channels]`` of a dimension of the weight, those of an earlier call in the run if there was one."""
    if weight.uses is None:
        return random_signs(shape, like)
    key = dimension, *shape
    if key not in weight.uses.signs:
        weight.uses.signs[key] = random_signs(shape, like)
    return weight.uses.signs[key].to(like)


def _takes(bias: GaussianWeight, signs: Tensor) -> bool:
    """Whether the bias has the signs of the outputs; a bias under several weights has those of its first."""
    rows = signs.shape[:-1]
    bias.used("one weight for each row", *rows)
    if bias.uses is None:
        return True
    kept = bias.uses.signs.setdefault(("bias", *signs.shape), signs)
    return kept is signs


def _spread(signs: Tensor, x: Tensor, channel: int) -> Tensor:
    """Signs ``[B, channels]`` in a shape to be multiplied with ``x``."""
    shape = [x.shape[0]] + [1] * (x.dim() - 1)
    shape[channel] = signs.shape[-1]
    return signs if x.dim() == 1 else signs.view(shape)


def random_signs(shape: Sequence[int], like: Tensor) -> Tensor:
    """Independent uniform signs of the given shape: 64 of them from each random word, which a table unpacks."""
    count = math.prod(shape)
    words = torch.empty(-(-count // 64), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    table = _signs_of_bytes(like.dtype, like.device)
    return F.embedding(words.view(torch.uint8).int(), table).view(-1)[:count].view(*shape)


@cache
def _signs_of_bytes(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The signs that the eight bits of each byte stand for, ``[256, 8]``."""
    bits = torch.arange(256).unsqueeze(-1).bitwise_right_shift(torch.arange(8)).bitwise_and(1)
    return (2 * bits - 1).to(device, dtype)
