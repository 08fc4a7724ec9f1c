"""The inputs of which predictions are most and least certain; only these are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.trees import take_rows, to_device
from pyrobnn.reporting.report import Report

__all__ = ["Example", "Extremes", "write_examples"]

MAX_COLUMNS = 8
"""At most so many numbers of an input are shown."""


@dataclass(frozen=True, eq=False)
class Example:
    """One input.

    Attributes:
        number: Its place in the data.
        key: What examples are ordered by.
        inputs: The input, with a first dimension of 1; None where inputs cannot be told apart.
        cells: What is shown of it, by name.
    """

    number: int
    key: float
    inputs: Any
    cells: dict[str, object]


class Extremes:
    """The few inputs of smallest key among those of all batches.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.examples: list[Example] = []

    def add(self, keys: Tensor, first: int, inputs: Any, cells: Callable[[int], dict[str, object]]) -> None:
        """Takes the batch into account.

        Args:
            keys: One for each input ``[N]``; infinity leaves it out.
            first: The number of the first input.
            inputs: The inputs of the batch.
            cells: What is shown of the input of a given place in the batch.
        """
        chosen = [i for i in keys.argsort(stable=True)[: self.count].tolist() if keys[i] < torch.inf]
        is_full = self.examples and len(self.examples) == self.count
        worst = self.examples[-1].key if is_full else torch.inf
        for i in chosen:
            if float(keys[i]) < worst:
                row = _row(inputs, i, len(keys))
                self.examples.append(Example(first + i, float(keys[i]), row, cells(i)))
        self.examples = sorted(self.examples, key=lambda example: (example.key, example.number))[: self.count]


def write_examples(
    page: Report, examples: Sequence[Example], feature_names: Sequence[str] | None, images: bool | None
) -> None:
    """Appends the examples: as images if they are some, as rows of a table otherwise.

    Args:
        page: The page.
        examples: The examples.
        feature_names: Names of the numbers of an input.
        images: Whether inputs are images; None goes by their shape.
    """
    inputs = [example.inputs for example in examples]
    if (
        images is not False
        and all(_is_image(entry) for entry in inputs)
        and len({entry.shape for entry in inputs}) == 1
    ):
        lines = ["\n".join(f"{name}: {value}" for name, value in example.cells.items()) for example in examples]
        captions = [f"no. {example.number}\n{line}" for example, line in zip(examples, lines, strict=True)]
        page.images(torch.cat(inputs), captions, "input")
        return
    rows = [{"no.": example.number} | example.cells | _features(example.inputs, feature_names) for example in examples]
    page.table(rows)


def _row(inputs: Any, index: int, rows: int) -> Any:
    try:
        return to_device(take_rows(inputs, torch.tensor([index]), rows), "cpu")
    except (ValueError, TypeError):  # a graph or packed sequence
        return None


def _is_image(entry: Any) -> bool:
    if not isinstance(entry, Tensor) or not (entry.is_floating_point() or entry.dtype == torch.uint8):
        return False
    return bool(entry.isfinite().all()) and (entry.dim() == 3 or (entry.dim() == 4 and entry.shape[1] in (1, 3)))


def _features(entry: Any, names: Sequence[str] | None) -> dict[str, object]:
    """The first numbers of an input, by name."""
    if isinstance(entry, Mapping):
        parts = dict(entry)
    elif isinstance(entry, tuple | list):
        parts = {f"input {i}": part for i, part in enumerate(entry)}
    else:
        parts = {"": entry}
    found: dict[str, object] = {}
    for name, part in parts.items():
        if isinstance(part, Tensor) and part.dim() in (1, 2) and not part.is_complex():
            values = part.reshape(-1).tolist()
            if names is not None and len(names) == len(values):
                labels = list(names)
            else:
                start = f"{name} " if name else "x"
                labels = [str(name) or "x"] if len(values) == 1 else [f"{start}{i}" for i in range(len(values))]
            found |= dict(zip(labels, values, strict=True))
    return dict(list(found.items())[:MAX_COLUMNS])
