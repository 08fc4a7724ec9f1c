"""How a network is run in a prediction: precision of its arithmetic and layout of its inputs.

Both are choices of speed. Half precision is torch's autocasting around the network alone: draws, log probabilities and
all sums over draws keep their precision. Channels last is a layout that convolutions take over from their inputs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyrobnn.core.trees import map_leaves
from pyrobnn.prediction.vectorization import Method

__all__ = ["Execution", "Precision"]

Precision = Literal["bfloat16", "float16"]

_LAYOUTS = {torch.channels_last: 4, torch.channels_last_3d: 5}  # and the number of dimensions of their tensors


@dataclass(frozen=True)
class Execution:
    """How a network is run.

    Attributes:
        precision: In which :func:`torch.autocast` runs the network; None for its own.
        memory_format: ``torch.channels_last`` or ``torch.channels_last_3d``, the layout of inputs with channels;
            None leaves them as they are.
        compile: Whether the network is compiled (:mod:`pyrobnn.prediction.compiled`).

    Raises:
        ValueError: If one is unknown.
    """

    precision: Precision | None = None
    memory_format: torch.memory_format | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in get_args(Precision):
            raise ValueError(
                f"precision: expected {' or '.join(map(repr, get_args(Precision)))}, or None for the network's own, "
                f"got {self.precision!r}."
            )
        if self.memory_format is not None and self.memory_format not in _LAYOUTS:
            raise ValueError(
                "memory_format: expected torch.channels_last, torch.channels_last_3d or None, got "
                f"{self.memory_format!r}."
            )

    def method(self, asked: Method) -> Method:
        """How draws are run: compiled, or in half precision, one after another.

        Raises:
            ValueError: If vmap was asked for.
        """
        if not self.compile and self.precision is None:
            return asked
        if asked == "vmap":
            reason = "a compiled network takes one draw at a time"
            if self.precision is not None:
                reason = f"torch does not run convolutions under vmap in {self.precision}"
            raise ValueError(f"method: {reason}; use 'loop' or 'auto', or leave that option out.")
        return "loop"

    def laid_out(self, x: Any) -> Any:
        """Inputs of which tensors with channels have the memory format; others are as they were."""
        layout = self.memory_format
        if layout is None:
            return x

        def convert(leaf: Any) -> Any:
            has_channels = isinstance(leaf, Tensor) and leaf.dim() == _LAYOUTS[layout]
            return leaf.contiguous(memory_format=layout) if has_channels else leaf

        return map_leaves(convert, x)

    def casting(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The block in which the network runs."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self.precision))
