r"""Inputs far from unit scale are noticed in the first epoch of a fit.

A prior of unit scale gives :math:`w^\top x` the standard deviation :math:`|x|`, and a step of the optimizer moves it by
the learning rate times :math:`|x|_1`: numbers a hundred times as large saturate a network at its start and drown the
columns beside them, numbers a thousand times as small are not seen. What is measured is the root mean square of the
numbers that are not zero (zeros of one-hot codes, counts and empty pixels say nothing about the scale): by column of a
table, of all numbers of other inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyrobnn.core import random_state
from pyrobnn.core.batches import Batch
from pyrobnn.core.trees import leaves
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.declarations import declared_outputs
from pyrobnn.model.last_layer import layers_with_matrices

__all__ = ["InputScale"]

LARGEST = 50.0
"""Root mean square that is too large: pixels to 255 have 100 and more, gray levels to 16 and z-scores less than 16."""
SMALLEST = 3e-3
"""Root mean square that is too small: pixels divided by 255 twice have 0.002, the faintest gray of those to 1 0.004."""
_MOST_ROWS, _MOST_NUMBERS = 10_000, 10_000_000
_NAMED = 3


class InputScale:
    """Sums over the first 10,000 rows at most, which cost no synchronization, and a warning after the first epoch."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums | None] = {}
        self._rows, self._counted, self._is_done = 0, 0, False

    def add(self, batch: Batch) -> None:
        """Adds the inputs of a batch, while there are not enough."""
        if self._is_done or self._rows >= _MOST_ROWS or self._counted >= _MOST_NUMBERS:
            return
        self._rows += batch.rows
        for name, values in _numbers(batch.inputs):
            self._counted += values.numel()
            found = _Sums.of(values)
            if name not in self._sums:
                self._sums[name] = found
            elif (before := self._sums[name]) is not None:
                # Tables with another number of columns in each batch have no columns.
                self._sums[name] = before.plus(found) if before.count.shape == found.count.shape else None

    def after_epoch(self, model: Any, batch: Batch) -> None:
        """Looks at the sums, once.

        Inputs that the network itself brings to another scale are none of its business: what counts is what the first
        layer with a weight matrix is given.

        Args:
            model: The model; one that does not declare its outputs is not looked at.
            batch: A batch to run the network on, where inputs are far from unit scale.

        Warns:
            UserWarning: If inputs are far from unit scale.
        """
        if self._is_done:
            return
        self._is_done = True
        found = [(name, far) for name, sums in self._sums.items() if sums is not None and (far := sums.far())]
        self._sums = {}
        if found and _reaches_a_layer(model, batch):
            said = "; ".join(f"{name}{_said(far)}" for name, far in found)
            warnings.warn(
                f"loader: inputs are far from unit scale, for which priors, learning rates and starting weights are "
                f"made: {said} (root mean square). Standardize them by pyrobnn.Standardizer, or divide them (pixels by "
                "255), here and in prediction.",
                stacklevel=6,  # the call of fit()
            )


@dataclass
class _Sums:
    """Sums of squares, and the number of entries that are not zero, ``[D]`` for a table, else ``[1]``."""

    squares: Tensor
    count: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Sums:
        """Of the numbers of a batch."""
        x = values.detach().float()
        x = x if x.dim() == 2 else x.reshape(-1, 1)
        return cls(x.square().sum(0), (x != 0).sum(0))

    def plus(self, other: _Sums) -> _Sums:
        """Of both."""
        return _Sums(self.squares + other.squares, self.count + other.count)

    def far(self) -> list[tuple[int | None, float]]:
        """Columns (None for all numbers) that are far from unit scale, and their root mean squares."""
        scale = (self.squares / self.count).sqrt().cpu()  # NaN for what is always zero
        columns = ((scale > LARGEST) | (scale < SMALLEST)).nonzero().flatten().tolist()
        return [(column if len(scale) > 1 else None, float(scale[column])) for column in columns]


def _said(far: list[tuple[int | None, float]]) -> str:
    if far[0][0] is None:
        return f"{far[0][1]:.3g}"
    named = ", ".join(f"{scale:.3g} in column {column}" for column, scale in far[:_NAMED])
    return named if len(far) <= _NAMED else f"{named} and others, {len(far)} in all"


def _numbers(inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """Real floating-point tensors among the inputs, with a name; integers are indices, masks and tokens."""
    several = isinstance(inputs, Mapping | tuple | list) and not isinstance(inputs, PackedSequence)
    parts = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs) if several else [("", inputs)]
    for key, part in parts:
        for index, leaf in enumerate(leaves(part)):
            values = leaf.data if isinstance(leaf, PackedSequence) else leaf
            if isinstance(values, Tensor) and values.is_floating_point() and not values.is_sparse and values.numel():
                yield (f"input {key!r}{f' ({index})' if index else ''}: " if several else ""), values


def _reaches_a_layer(model: Any, batch: Batch) -> bool:
    """Whether a layer is given numbers as far from unit scale: the first that is given as many, or the first at all."""
    if (outputs_of := declared_outputs(model)) is None or not isinstance(model, nn.Module):
        return False
    sizes = {values.numel() for _, values in _numbers(batch.inputs) if _Sums.of(values).far()}
    given: list[tuple[int, bool]] = []

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        for _name, values in _numbers(args):
            given.append((values.numel(), bool(_Sums.of(values).far())))

    handles = [layer.register_forward_pre_hook(look) for layer in layers_with_matrices(model).values()]
    try:
        with torch.no_grad(), random_state.preserved(batch.device), evaluating(model), frozen_buffers(model):
            outputs_of(batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    firsts = [next((far for size, far in given if size == wanted), None) for wanted in sizes]
    if any(first is not None for first in firsts):
        return any(firsts)
    return bool(given) and given[0][1]
