"""When a training step of an ensemble is faster with all members in one vectorized pass.

A small network's step is mostly Python, which :func:`torch.func.vmap` incurs once for all members instead of M times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["pays_off"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# Weights per member up to which one pass beat the loop on a CPU (one thread, Adam, M = 8, as multiples of 8 separate
# steps). Linear layers: 0.3 at 5,000 weights, 0.6 to 0.9 at 70,000 to 130,000, 1.1 to 1.3 from 160,000 on. With
# convolutions, which become grouped ones: 0.3 at 1,400, 1.1 at 62,000. Two members gain nothing.
# With AVX-512 products cost less and the loop's memory traffic as much: one pass is ahead by 30 % at 160,000 weights,
# by 20 % at 270,000, and by 10 % at 480,000 (0.99 against 1.12), but there not for 32 members any more.
_LARGEST = 100_000
_LARGEST_AVX512 = 300_000
_LARGEST_AVX512_TOGETHER = 4_000_000  # of all members
_LARGEST_CONVOLUTIONAL = 10_000
_LARGEST_ON_OTHER_DEVICES = 10**6  # launches dominate longer there; memory for activations grows M-fold. Not measured.
_FEWEST = 3


def pays_off(model: Any, rows: Tensor) -> bool:
    """Whether one vectorized pass is expected to be faster than a loop over members ``[M, d]``, and to be possible."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    num_members, num_weights = rows.shape
    if num_members < _FEWEST or any(isinstance(module, nn.RNNBase) for module in modules):
        return False
    if rows.device.type != "cpu":
        return num_weights <= _LARGEST_ON_OTHER_DEVICES
    if any(isinstance(module, _CONVOLUTIONS) for module in modules):
        return num_weights <= _LARGEST_CONVOLUTIONAL
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return num_weights <= _LARGEST_AVX512 or rows.numel() <= _LARGEST_AVX512_TOGETHER
    return num_weights <= _LARGEST
