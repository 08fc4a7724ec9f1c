"""What a loader yields: how it is read, moved to a device, cut by rows and joined.

A :class:`Batch` is read once, where it leaves the loader; all later code uses the batch. Inputs may be any tree
of tensors (:mod:`pyrobnn.core.trees`): nested tuples, namedtuples, lists and mappings, with None entries, packed
sequences and objects such as graphs among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from pyrobnn.core.finite import check_inputs, check_weight
from pyrobnn.core.trees import RowIndex, join_rows, leaves, refuse_arrays, take_rows, to_device

__all__ = ["TARGET_NAMES", "Batch", "Reader", "inputs_of", "loader_options", "num_batches"]

Reader: TypeAlias = Callable[[Any], Any]
"""From what a loader yields to a :class:`Batch`, ``(inputs, targets)`` or ``(inputs, targets, weight)``."""

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Keys of a mapping, or fields of a namedtuple, under which targets are found."""

_FORMS = "expected batches (x, y), (x, y, weight) or mappings with the targets under one of " + ", ".join(TARGET_NAMES)


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: ``model(*args, **kwargs)`` is the model's training call, ``inputs`` is what prediction passes.

    Attributes:
        args: Arguments of the model: ``(inputs, targets)``, or ``(inputs, targets, weight)``.
        kwargs: Its keyword arguments.
        inputs: Inputs of the network: a tensor; a tuple or list of its arguments; a mapping of its keyword arguments;
            or any one object, such as a packed sequence or a graph.
        targets: Targets, a tensor ``[B, ...]`` or several of them in tuples, lists and mappings.
        rows: Number B of targets, of which the log likelihood counts N/B times. Masks and weights do not change it.
        weight: A weight of the log likelihood for each row ``[B]``, or None.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Any
    targets: Any
    rows: int
    weight: Tensor | None = None

    @classmethod
    def of(cls, inputs: Any, targets: Any, weight: Tensor | None = None, *, argument: str = "loader") -> Batch:
        """The batch of a model that is called as ``model(inputs, targets)`` or ``model(inputs, targets, weight)``.

        Args:
            inputs: Inputs of the network.
            targets: Targets, ``[B, ...]``.
            weight: Weights of the rows, floating-point ``[B]``.
            argument: What errors name.

        Raises:
            TypeError: If targets are no tensors, inputs are NumPy arrays, or weights are no floating-point tensor.
            ValueError: If targets have no rows or different numbers of them, or the weights are not as many.
        """
        refuse_arrays(inputs, f"{argument}: the inputs of a batch")
        rows = _target_rows(targets, argument)
        if weight is None:
            return cls((inputs, targets), {}, inputs, targets, rows)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            kind = f"tensor of {weight.dtype}" if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(
                f"{argument}: the third entry of a batch is the weight of each row, a floating-point tensor [{rows}], "
                f"but got a {kind}; if it is something else, pass batch= a function from it to (inputs, targets)."
            )
        if weight.shape != (rows,):
            raise ValueError(
                f"{argument}: the weights of a batch must have shape [{rows}], one for each row, but got "
                f"{list(weight.shape)}."
            )
        return cls((inputs, targets, weight), {}, inputs, targets, rows, weight)

    @classmethod
    def read(
        cls,
        raw: Any,
        device: torch.device | str | None = None,
        reader: Reader | None = None,
        *,
        argument: str = "loader",
    ) -> Batch:
        """The batch in what a loader yielded.

        Without a ``reader`` that is ``(x, y)`` or ``(x, y, weight)``; or a mapping, or a namedtuple, that has one of
        :data:`TARGET_NAMES` as a key: those are the targets, the other entries the inputs (of a mapping as keyword
        arguments of the network; of a namedtuple in order, with a field ``weight`` as the weights).

        Args:
            raw: What the loader yielded, or a batch.
            device: Where tensors go, and what else has a method ``to``; None leaves them.
            reader: A function from ``raw`` to a batch, ``(inputs, targets)`` or ``(inputs, targets, weight)``.
            argument: What errors name.

        Raises:
            TypeError: If ``raw`` is of another form.
            ValueError: If targets or weights have the wrong number of rows.
        """
        raw = to_device(raw, device)
        if reader is not None:
            raw = to_device(reader(raw), device)
            if not isinstance(raw, Batch) and (type(raw) not in (tuple, list) or len(raw) not in (2, 3)):
                raise TypeError(
                    "batch: expected the function to return a Batch, (inputs, targets) or (inputs, targets, weight), "
                    f"but it returned a {_described(raw)}."
                )
        if isinstance(raw, Batch):  # on the device already
            return raw
        return cls.of(*_split(raw, argument), argument=argument)

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """All rows of several batches in one.

        Raises:
            TypeError: If they are not made alike.
            ValueError: If they cannot be cut into rows, their rows have different shapes, or one input is the same
                tensor in all of them, such as a table, and another is not.
        """
        shared = [len({id(leaf) for leaf in column}) == 1 for column in zip(*map(_tensors, batches), strict=False)]
        if len(batches) > 1 and any(shared) and not all(shared):
            raise ValueError(
                "batch: batches whose inputs share one tensor, such as a table, cannot be joined; pass all rows as one "
                "batch."
            )
        whole = [batch.part(slice(None)) for batch in batches]  # refuses what has no rows to join
        args, kwargs, inputs, targets, weight = join_rows(
            [(batch.args, batch.kwargs, batch.inputs, batch.targets, batch.weight) for batch in whole]
        )
        return cls(args, kwargs, inputs, targets, sum(batch.rows for batch in whole), weight)

    @property
    def device(self) -> torch.device:
        """Where the targets are."""
        tensors = (leaf for leaf in leaves((self.targets, self.inputs)) if isinstance(leaf, Tensor))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def to(self, device: torch.device | str | None) -> Batch:
        """The same batch on ``device``; None leaves it where it is."""
        moved = (self.args, self.kwargs, self.inputs, self.targets, self.weight)
        args, kwargs, inputs, targets, weight = to_device(moved, device)
        return Batch(args, kwargs, inputs, targets, self.rows, weight)

    def part(self, index: RowIndex) -> Batch:
        """The rows that a slice, or a tensor of indices, names.

        Raises:
            ValueError: If an input is no tensor with one entry for each row, such as a packed sequence, a graph or a
                table, since what belongs to which row is then unknown.
        """
        if isinstance(index, slice):
            rows = len(range(self.rows)[index])
        else:
            rows = int(index.sum()) if index.dtype == torch.bool else len(index)
        whole = (self.args, self.kwargs, self.inputs, self.targets, self.weight)
        args, kwargs, inputs, targets, weight = take_rows(whole, index, self.rows)
        return Batch(args, kwargs, inputs, targets, rows, weight)

    def check(self, index: int) -> None:
        """Refuses inputs that are not finite (:func:`check_inputs`) and weights that are negative or not finite.

        Args:
            index: Number of the batch, which the error names.

        Raises:
            ValueError: If there are some.
        """
        check_inputs(self.inputs, index)
        if self.weight is not None:
            check_weight(self.weight)


def _split(raw: Any, argument: str) -> tuple[Any, ...]:
    """Inputs and targets, and weights if there are some, of what a loader yielded."""
    if type(raw) in (tuple, list) and len(raw) in (2, 3):
        return tuple(raw)
    names = list(raw) if isinstance(raw, Mapping) else list(getattr(raw, "_fields", ())) if _is_tuple(raw) else []
    found = [name for name in TARGET_NAMES if name in names]
    if len(found) > 1:
        raise TypeError(
            f"{argument}: which of {', '.join(map(repr, found))} in a batch are the targets? Pass batch= a function "
            "from a batch to (inputs, targets)."
        )
    if isinstance(raw, Mapping) and found:
        return {name: value for name, value in raw.items() if name != found[0]}, raw[found[0]]
    if found:
        fields = dict(zip(names, raw, strict=True))
        targets, weight = fields.pop(found[0]), fields.pop("weight", None)
        inputs = tuple(fields.values())
        return inputs[0] if len(inputs) == 1 else inputs, targets, weight
    if (_is_tuple(raw) or isinstance(raw, list)) and len(raw) in (2, 3):
        return tuple(raw)
    raise TypeError(
        f"{argument}: {_FORMS}, got a {_described(raw)}; pass batch= a function from it to (inputs, targets)."
    )


def _tensors(batch: Batch) -> list[Tensor]:
    return [leaf for leaf in leaves(batch.inputs) if isinstance(leaf, Tensor) and leaf.dim()]


def _is_tuple(raw: Any) -> bool:
    return isinstance(raw, tuple) and not isinstance(raw, PackedSequence)


def _described(raw: Any) -> str:
    if isinstance(raw, Mapping):
        return f"{type(raw).__name__} with {', '.join(map(repr, raw))}"
    return (
        f"{type(raw).__name__} of length {len(raw)}" if _is_tuple(raw) or isinstance(raw, list) else type(raw).__name__
    )


def _target_rows(targets: Any, argument: str) -> int:
    if isinstance(targets, Tensor) and targets.dim():
        return len(targets)
    refuse_arrays(targets, f"{argument}: the targets of a batch")
    tensors = list(leaves(targets))
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TypeError(f"{argument}: the targets y of a batch are a {type(targets).__name__}, expected a tensor.")
    if any(tensor.dim() == 0 for tensor in tensors):
        raise ValueError(
            f"{argument}: the targets y of a batch are a single number; wrap the data set in a DataLoader."
        )
    lengths = {len(tensor) for tensor in tensors}
    if len(lengths) > 1:
        raise ValueError(f"{argument}: the targets of a batch have different numbers of rows, {sorted(lengths)}.")
    return lengths.pop()


def inputs_of(raw: Any, argument: str = "data", reader: Reader | None = None) -> tuple[Any, Any]:
    """Inputs, and targets where there are any, of what a loader of inputs or of batches yielded.

    Args:
        raw: What it yielded.
        argument: What errors name.
        reader: How to read it, as for :meth:`Batch.read`; here the targets may be None.

    Raises:
        TypeError: If it is of another form.
    """
    if reader is not None:
        if not callable(reader):
            raise TypeError(f"batch: expected a function from a batch to (inputs, targets), got {reader!r}.")
        raw = reader(raw)
        if type(raw) in (tuple, list) and len(raw) == 2 and raw[1] is None:
            return raw[0], None
        read = Batch.read(raw, reader=lambda made: made, argument=argument)
        return read.inputs, read.targets
    if isinstance(raw, Tensor | PackedSequence):
        return raw, None
    refuse_arrays(raw, f"{argument}: the inputs")
    is_numbers = type(raw) in (tuple, list) and any(isinstance(entry, bool | int | float) for entry in raw[:1])
    if type(raw) in (tuple, list) and len(raw) in (1, 2) and not is_numbers:
        return raw[0], raw[1] if len(raw) == 2 else None
    if isinstance(raw, Mapping) and not any(name in raw for name in TARGET_NAMES):
        return raw, None
    if is_numbers or not isinstance(raw, tuple | list | Mapping | Batch):
        kind = type(raw).__name__
        raise TypeError(f"{argument}: expected a loader of inputs or of pairs (x, y), got a batch of {kind}.")
    return (read := Batch.read(raw, argument=argument)).inputs, read.targets


def num_batches(loader: Any) -> int | None:
    """The batches of one pass; None if the loader has no length."""
    if not isinstance(loader, Sized):
        return None
    try:
        return len(loader)
    except TypeError:  # a DataLoader over a stream has no length after all
        return None


def loader_options(loader: DataLoader[Any]) -> dict[str, Any]:
    """How a loader reads its rows, whichever these are: arguments of another loader of the same data."""
    return {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "prefetch_factor": loader.prefetch_factor,
        "persistent_workers": loader.persistent_workers,
    }
