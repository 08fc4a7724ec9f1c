"""Which floating-point numbers suffice for what."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["refuse_float16"]


def refuse_float16(argument: str, values: Tensor) -> None:
    """Refuses weights in float16, whose largest number is 65504: sums over weights and data are larger.

    Args:
        argument: What the error names.
        values: The weights, or what they are made of.

    Raises:
        ValueError: If they are in float16.
    """
    if values.dtype == torch.float16:
        raise ValueError(
            f"{argument}: its weights are torch.float16, whose largest number, 65504, is less than sums over weights "
            "and data. Keep model and guide in float32 and compute in half precision under torch.autocast, or use "
            "torch.bfloat16."
        )
