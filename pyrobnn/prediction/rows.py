r"""Where inputs may be cut: only between rows that do not see each other.

By default a batch is run in one call of the network, as :func:`pyrobnn.fit` runs it. Two things allow to cut it into
parts by the first dimension, which keeps memory bounded and is faster on a CPU:

* ``batch_size``, by which the caller declares that each input has one entry for each row;
* one tensor ``[N, ...]``, of which the network has shown that rows do not interact. Of 32 rows, spread over the
  inputs and disturbed by noise, the even ones alone and the odd ones alone must have the same outputs as all together,
  one row of outputs each. Batch statistics, attention over the batch, sequences with time first, graphs with a fixed
  adjacency matrix and recurrences along rows fail that. It is found out once for inputs of one shape.

What has several tensors (a table, a mask, edges beside nodes) is never cut unless that is declared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.trees import leaves, map_leaves, num_rows, take_rows

__all__ = [
    "Part",
    "RowCutter",
    "Run",
    "bytes_of_part",
    "check_outputs",
    "has_one_row",
    "join_outputs",
    "measured",
    "refuse_squeezed",
]

_CPU_BYTES = 8 * 2**20
"""Of the activations of a part on a CPU: more leave the caches and cost page faults, less cost calls.

Processor time of ResNet-20 by rows of a part, as a multiple of that in parts of 256: 0.86, 0.70, 0.80, 1.34 (16, 32,
64, 512); of LeNet 1.26, 1.07, 0.97, 1.41 (32, 64, 512, 1,024); of the perceptron 784-400-400-10 1.12, 0.97, 0.95 (128,
512, 1,024); of 64-64-10 0.77, 0.65 (1,024, 8,192). 8 MiB are 32, 190, 886 and 8,192 rows of these.
"""

_SEEN_ROWS = 256  # up to here inputs that look small are run whole, without a trial
_FEWEST_ROWS = 4  # no part of one row arises, of which squeeze() would drop the dimension
_PROBED_ROWS = 32
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # of equal rows in batches of another size, by rounding

_SQUEEZED = (
    "net: it returned {}; it must return one row of outputs for each row of x (a squeeze() drops the only row of a "
    "batch; use squeeze(-1))."
)

Run = Callable[[Any], Tensor]


class Part(NamedTuple):
    """Inputs for one call of the network, and how many rows they have; None where that is not known."""

    inputs: Any
    rows: int | None


class RowCutter:
    """Cuts inputs into parts, where that cannot change what the network returns.

    Args:
        model: The model, whose layers show how much memory a row takes.
        batch_size: Rows of a part, by which the caller declares that inputs are by rows; None if that is not declared.
        max_bytes: Budget for the activations of a part.
        even: Whether parts are nearly equal; else all but the last are.

    Raises:
        ValueError: If ``batch_size`` is not positive.
    """

    def __init__(self, model: nn.Module, batch_size: int | None, max_bytes: int, *, even: bool = True) -> None:
        if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int)):
            raise TypeError(f"batch_size: expected a positive int or None, got {batch_size!r}.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected a positive int, got {batch_size}.")
        self.model, self.batch_size, self.max_bytes, self.even = model, batch_size, max_bytes, even
        self._row_bytes: dict[Any, int | None] = {}  # by shape of a row; None where rows interact

    def parts(self, x: Any, run: Run) -> list[Part]:
        """The parts of inputs.

        Args:
            x: The inputs.
            run: The network under one draw.

        Raises:
            ValueError: If ``batch_size`` was declared, but something has not one entry for each row.
        """
        if self.batch_size is not None:
            return _cut(x, _declared_rows(x), self.batch_size, self.even)
        found = list(leaves(x))
        if len(found) != 1 or not isinstance(found[0], Tensor) or not found[0].dim():
            return [Part(x, None)]
        (only,) = found
        if len(only) <= _SEEN_ROWS and 8 * only.nbytes <= self.max_bytes:
            return [Part(x, None)]
        key = (only.shape[1:], only.dtype)
        if key not in self._row_bytes:
            self._row_bytes[key] = self._probe(x, only, run)
        row_bytes = self._row_bytes[key]
        if row_bytes is None:
            return [Part(x, None)]
        size = max(_FEWEST_ROWS, bytes_of_part(self.max_bytes, only.device) // row_bytes)
        return _cut(x, len(only), size, self.even)

    def _probe(self, x: Any, only: Tensor, run: Run) -> int | None:
        """Bytes for the activations of a row; None if rows interact, or the network cannot run on some of them."""
        if len(only) < 2 * _PROBED_ROWS:
            return None
        picked = torch.linspace(0, len(only) - 1, _PROBED_ROWS).round().long().to(only.device)
        with random_state.preserved(only.device):
            probe = only[picked]
            if probe.is_floating_point():  # so that no input is the same in all rows, and hides what depends on it
                scale = probe.float().std().nan_to_num()
                noise = torch.randn(probe.shape, device=probe.device) * scale.where(scale > 0, 1.0)
                probe = probe + noise.to(probe.dtype)
            elif bool((probe == probe[:1]).all()):
                return None
            try:
                together, nbytes = measured(self.model, _with_rows(x, probe), run)
                for start in (0, 1):
                    alone = run(_with_rows(x, probe[start::2]))
                    if not _same_rows(alone, together[start::2], _PROBED_ROWS // 2):
                        return None
            except Exception:  # whatever a network raises where it needs all rows
                return None
        return max(1, nbytes // _PROBED_ROWS)


def bytes_of_part(max_bytes: int, device: torch.device) -> int:
    """For the activations of a part, out of a budget: on a CPU no more than are fast."""
    return min(max_bytes, _CPU_BYTES) if device.type == "cpu" else max_bytes


def measured(model: nn.Module, inputs: Any, run: Run) -> tuple[Tensor, int]:
    """The outputs, and twice the bytes of the input and output of the largest layer.

    Args:
        model: The model, whose layers they are.
        inputs: Inputs of one call of the network.
        run: The network under one draw.
    """
    largest = [1]

    def record_size(_: nn.Module, args: Any, output: Any) -> None:
        tensors = [t for t in (*args, output) if isinstance(t, Tensor)]
        largest[0] = max(largest[0], sum(t.numel() * t.element_size() for t in tensors))

    layers = [module for module in model.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(record_size) for layer in layers]
    try:
        return run(inputs), 2 * largest[0]
    finally:
        for hook in hooks:
            hook.remove()


def join_outputs(outputs: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
    """The outputs of all parts, each of which must have one row for each row of its inputs.

    Raises:
        ValueError: If one has not.
    """
    for found, part in zip(outputs, parts, strict=True):
        check_outputs(found, part.rows)
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs))


def check_outputs(outputs: Tensor, rows: int | None) -> None:
    """Refuses outputs that have not one row for each of ``rows``, or no rows at all.

    Raises:
        ValueError: If they are such.
    """
    if not outputs.dim():
        raise ValueError(_SQUEEZED.format("one number for the whole batch"))
    if rows is not None and len(outputs) != rows:
        raise ValueError(
            f"net: it returned outputs of shape {list(outputs.shape)} for a part of {rows} rows; leave out batch_size "
            "where inputs do not have one entry for each row, and use squeeze(-1) instead of squeeze() in the network."
        )


def has_one_row(parts: Sequence[Part]) -> bool:
    """Whether these are inputs of which every tensor has length one."""
    tensors = [leaf for part in parts for leaf in leaves(part.inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    return bool(tensors) and all(len(tensor) == 1 for tensor in tensors)


def refuse_squeezed(x: Any, outputs: Tensor, run: Run) -> None:
    """Refuses outputs of one row that have lost their first dimension, as ``squeeze()`` does with a batch of one.

    Outputs ``[C]`` would be taken for C rows. They may also be right, where time comes first; the same row twice
    tells these apart.

    Raises:
        ValueError: If the dimension is lost.
    """
    if len(outputs) == 1:
        return

    def twice(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() else leaf

    try:
        doubled = run(map_leaves(twice, x))
    except Exception:  # whatever a network raises that takes one row only
        return
    if doubled.shape == (2, *outputs.shape):
        raise ValueError(_SQUEEZED.format(f"outputs of shape {list(outputs.shape)} for one row"))


def _cut(x: Any, rows: int, size: int, even: bool) -> list[Part]:
    """Parts of at most ``size`` rows each, of nearly equal length, or all but the last of exactly that."""
    if rows <= size:
        return [Part(x, rows)]
    count = -(-rows // size)
    bounds = [rows * index // count if even else min(size * index, rows) for index in range(count + 1)]
    slices = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    return [Part(take_rows(x, part, rows), part.stop - part.start) for part in slices]


def _with_rows(x: Any, rows: Tensor) -> Any:
    """Inputs like ``x``, with a copy of these rows for its only tensor, since networks may write into inputs."""
    return map_leaves(lambda _: rows.clone(), x)


def _declared_rows(x: Any) -> int:
    try:
        rows = num_rows(x)
        take_rows(x, slice(0, 0), rows)
    except ValueError as error:
        raise ValueError(
            f"batch_size: it cuts all inputs by rows, but these cannot be cut: {error} Leave batch_size out, so that "
            "they are run whole."
        ) from error
    return rows


def _same_rows(alone: Tensor, together: Tensor, rows: int) -> bool:
    tolerance = _TOLERANCE.get(alone.dtype)
    if tolerance is None or alone.shape != together.shape or not alone.dim() or len(alone) != rows:
        return False
    return bool(((alone - together).abs() <= tolerance * together.abs().amax(0)).all())
