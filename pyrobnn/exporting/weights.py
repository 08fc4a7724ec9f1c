r"""The numbers of an exported program, frozen in one of three precisions.

``"bfloat16"`` keeps sixteen bits of each weight. ``"int8"`` keeps, of a weight w with output channels c,

.. math::  q = \mathrm{round}(w / s_c), \qquad s_c = \max |w_c| / 127,

with a scale for each output channel of each draw; biases and other vectors stay as they are. The arithmetic is that of
the network: weights are expanded where they are used. Files shrink to a half and about a quarter; the error is that of
rounded weights alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["FrozenTensors", "Precision"]

Precision: TypeAlias = Literal["float32", "bfloat16", "int8"]


class FrozenTensors(nn.Module):
    """Tensors by name, kept as buffers of a precision; calling it returns them in their own dtype.

    Args:
        tensors: The tensors.
        precision: ``"float32"`` keeps them as they are.
        exact: Names of tensors that are kept as they are.
        leading: Number of leading dimensions that are no part of a tensor: 1 for those of draws.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], precision: Precision, *, exact: Collection[str] = (), leading: int = 0
    ) -> None:
        super().__init__()
        self.names = list(tensors)
        self.dtypes = [value.dtype for value in tensors.values()]
        for index, (name, value) in enumerate(tensors.items()):
            kept, scale = value.detach(), None
            if name not in exact and value.is_floating_point():
                if precision == "bfloat16":
                    kept = kept.to(torch.bfloat16)
                elif precision == "int8" and kept.dim() - leading >= 2:
                    kept, scale = _rounded(kept, leading)
            self.register_buffer(f"value_{index}", kept.clone())
            self.register_buffer(f"scale_{index}", scale)

    def forward(self) -> dict[str, Tensor]:
        """The tensors by name."""
        found = {}
        for index, (name, dtype) in enumerate(zip(self.names, self.dtypes, strict=True)):
            value, scale = self.get_buffer(f"value_{index}"), self._buffers[f"scale_{index}"]
            value = value.to(dtype) if value.dtype != dtype else value
            found[name] = value if scale is None else value * scale
        return found


def _rounded(value: Tensor, leading: int) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 and their scales, one for each entry of the first ``leading + 1`` dimensions."""
    dims = tuple(range(leading + 1, value.dim()))
    scale = value.abs().amax(dims, keepdim=True) / 127.0
    scale = scale.where(scale > 0, 1.0)
    return (value / scale).round().to(torch.int8), scale
