"""Measurement points of functional objectives: the batch, and context points where there are no data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.trees import to_device
from pyrobnn.objectives.auxiliary import Auxiliary, InputSource

__all__ = ["Context", "ContextPoints", "DataBox"]

Context = Auxiliary | None
"""A function of a batch's inputs, or an iterable of input batches (pairs ``(x, y)`` lose their ``y``); or None."""


@explained
class DataBox:
    """Context points uniform in a box, new ones at each step.

    Args:
        low: The box's lower corner, of the shape of an input, or a number for all of it.
        high: The upper corner, likewise.
        num_points: Points at each step.

    Raises:
        TypeError: If a corner is no number or tensor.
        ValueError: If ``low`` is above ``high`` somewhere, or ``num_points`` is not positive.
    """

    def __init__(self, low: float | Tensor, high: float | Tensor, num_points: int = 32) -> None:
        for name, value in (("low", low), ("high", high)):
            if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
                raise TypeError(f"{name}: expected a number or a tensor of the shape of an input, got {value!r}.")
        check_positive_int("num_points", num_points)
        self.low, self.high, self.num_points = torch.as_tensor(low), torch.as_tensor(high), num_points
        try:
            above = bool((self.low > self.high).any())
        except RuntimeError as error:
            raise ValueError(
                f"high: the corners have shapes {tuple(self.low.shape)} and {tuple(self.high.shape)}; give them one."
            ) from error
        if above or not bool(self.low.isfinite().all() & self.high.isfinite().all()):
            raise ValueError("low: it must be finite and nowhere above high.")

    @classmethod
    @explained
    def around(cls, inputs: Tensor, margin: float = 0.5, num_points: int = 32) -> DataBox:
        """The box of data, wider by ``margin`` times its width on each side.

        Args:
            inputs: Data ``[N, ...]``.
            margin: Share of the width that is added on each side.
            num_points: Points at each step.

        Raises:
            TypeError: If ``inputs`` is no tensor of floating-point numbers.
            ValueError: If there are none, or ``margin`` is negative.
        """
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise TypeError(f"inputs: expected a tensor of floating-point numbers, got {type(inputs).__name__}.")
        if not inputs.dim() or not len(inputs):
            raise ValueError(f"inputs: expected rows of data, got shape {tuple(inputs.shape)}.")
        check_non_negative("margin", margin)
        low, high = inputs.amin(0), inputs.amax(0)
        return cls(low - margin * (high - low), high + margin * (high - low), num_points)

    def __call__(self, x: Any) -> Tensor:
        """Points ``[num_points, ...]`` beside a batch of inputs.

        Raises:
            TypeError: If inputs are no tensor of floating-point numbers.
            ValueError: If the corners are of another shape than an input.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"context: a DataBox is for tensors of floating-point inputs, got {type(x).__name__}.")
        low, high = self.low.to(x), self.high.to(x)
        for corner in (low, high):
            if corner.dim() and corner.shape != x.shape[1:]:
                raise ValueError(
                    f"context: the box has corners of shape {tuple(corner.shape)}, but an input has shape "
                    f"{tuple(x.shape[1:])}."
                )
        return low + (high - low) * torch.rand(self.num_points, *x.shape[1:], dtype=x.dtype, device=x.device)


class ContextPoints:
    """The context points of each step.

    Args:
        context: Where they come from.

    Raises:
        TypeError: If it is neither a function, an iterable nor None.
    """

    def __init__(self, context: Context) -> None:
        expected = "a DataBox, a function of the batch's inputs, a loader of inputs, or None"
        self.source = None if context is None else InputSource("context", context, expected)

    def beside(self, x: Any) -> Any:
        """The next points beside a batch of inputs; None if there are none.

        Raises:
            ValueError: If they are of another shape or precision than the inputs, or a loader is empty.
        """
        if self.source is None:
            return None
        found = self.source.next(x)
        if not isinstance(x, Tensor) or not isinstance(found, Tensor):
            raise TypeError(
                f"context: inputs and context points must be one tensor each, got {type(x).__name__} and "
                f"{type(found).__name__}; leave context out for networks with several inputs."
            )
        if found.shape[1:] != x.shape[1:] or not found.dim():
            raise ValueError(
                f"context: its points have shape {tuple(found.shape[1:])} each, but inputs have shape "
                f"{tuple(x.shape[1:])}; they must be inputs of the same network."
            )
        if not len(found):
            raise ValueError("context: it gave no points; pass None for none.")
        if found.dtype != x.dtype:
            raise ValueError(f"context: its points are of {found.dtype}, but inputs of {x.dtype}.")
        return to_device(found, x.device)
