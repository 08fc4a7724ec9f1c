r"""Flipout: one draw of the noise, with its own random signs for each example.

.. math::  \Delta W_n = \Delta W \circ r_n s_n^\top, \qquad
           y_n = \bar W x_n + \big(\Delta W (x_n \circ s_n)\big) \circ r_n,

with :math:`r_n, s_n` uniform on :math:`\{-1, 1\}`. Noise that is symmetric about zero keeps its distribution, so each
example has an exact draw of its own; draws of two examples are uncorrelated. Costs a second product and the noise of
one shared draw, a block of which serves eight steps with ``MeanField(antithetic=True)``. Wen, Vicol, Ba, Tran & Grosse,
*Flipout* (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        signs_in = random_signs(_signed(x, x.shape[channel], channel), x)
        mean = layer(x, weight.loc, b_loc)
        signs_out = random_signs(_signed(x, mean.shape[channel], channel), x)
        return torch.addcmul(mean, layer(x * signs_in, deviation, b_deviation), signs_out)


def _signed(x: Tensor, channels: int, channel: int) -> list[int]:
    """Shape of signs: one for each example and channel."""
    shape = [x.shape[0]] + [1] * (x.dim() - 1)
    shape[channel] = channels
    return [channels] if x.dim() == 1 else shape


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
