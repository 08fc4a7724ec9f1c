"""Sets of known and unknown inputs by name: what they must have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyrobnn.core.batches import Batch, Reader, inputs_of

__all__ = ["InputSets", "named_sets", "tensors_of"]


@dataclass(frozen=True)
class InputSets:
    """Known inputs and named sets of unknown ones.

    Attributes:
        in_: Inputs or a loader.
        out: The same by name.
    """

    in_: Any
    out: Mapping[str, Any]

    @staticmethod
    def check(known: list[Tensor], unknown: Mapping[str, list[Tensor]]) -> None:
        """Refuses sets that are empty, or whose inputs have another shape than the known ones.

        Raises:
            ValueError: If there is one; the message names it.
        """
        if not known or not len(known[0]):
            raise ValueError("in_: it holds no inputs.")
        for name, batches in unknown.items():
            if not batches or not len(batches[0]):
                raise ValueError(f"out: {name!r} holds no inputs.")
            for x in batches:
                check_shape(name, x, known[0])


def check_shape(name: str, x: Any, like: Any) -> None:
    """Refuses unknown inputs of another shape than the known ones.

    Raises:
        ValueError: If they are; the message names the set.
    """
    if isinstance(x, Tensor) and isinstance(like, Tensor) and x.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"out: inputs of {name!r} have shape {tuple(x.shape[1:])}, but those of in_ have {tuple(like.shape[1:])}; "
            "bring them to the same channels and size."
        )


def named_sets(in_: Any, out: Any) -> InputSets:
    """The sets.

    Raises:
        TypeError: If ``out`` is no mapping from names to sets.
        ValueError: If it is empty.
    """
    if not isinstance(out, Mapping) or not all(isinstance(name, str) for name in out):
        raise TypeError(f"out: expected outliers by name, such as {{'KMNIST': loader}}, got {type(out).__name__}.")
    if not out:
        raise ValueError("out: it names no outliers.")
    for name, data in {"in_": in_, **{f"out: {key!r}": value for key, value in out.items()}}.items():
        if not isinstance(data, Iterable) or isinstance(data, str | bytes):
            raise TypeError(f"{name}: expected inputs or a loader, got {type(data).__name__}.")
    return InputSets(in_, out)


def tensors_of(data: Any, reader: Reader | None, batch_size: int) -> Iterator[Tensor]:
    """Inputs that are one tensor, batch by batch.

    Raises:
        TypeError: If they are something else.
    """
    for x in inputs_in(data, reader, batch_size):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"data: expected inputs that are one floating-point tensor, got {kind}.")
        if len(x):
            yield x


def inputs_in(data: Any, reader: Reader | None, batch_size: int) -> Iterator[Any]:
    """The inputs of a tensor, a batch or a loader."""
    if isinstance(data, Batch):
        yield data.inputs
    elif isinstance(data, Tensor):
        if data.dim():
            yield from data.split(batch_size)
    elif not isinstance(data, Iterable) or isinstance(data, str | bytes | Mapping):
        raise TypeError(f"data: expected a tensor of inputs or a loader, got {type(data).__name__}.")
    else:
        for raw in data:
            yield inputs_of(raw, reader=reader)[0]
