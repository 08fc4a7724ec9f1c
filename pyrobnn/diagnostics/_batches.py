"""The model's arguments in batches of rows, so that memory does not grow with the data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrobnn.arguments import check_positive_int
from pyrobnn.supervised import SupervisedModel

__all__ = ["Batch", "batches", "concatenate", "move"]


class Batch(NamedTuple):
    """Arguments for one run of the model, and the rows of the data they are (all of them: ``...``)."""

    rows: slice | EllipsisType
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def batches(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], batch_size: int) -> list[Batch]:
    """The arguments in batches of rows for a :class:`SupervisedModel`; other models see all data at once.

    Raises:
        ValueError: If ``batch_size`` is not positive, or the arguments have no rows or differing numbers of
            them.
    """
    check_positive_int("batch_size", batch_size)
    if not isinstance(model, SupervisedModel):
        return [Batch(..., args, kwargs)]
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    lengths = {len(tensor) for value in given.values() for tensor in _tensors(value)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"x, y: expected tensors with the same positive number of rows, got {sorted(lengths)} rows.")
    total, step = lengths.pop(), min(batch_size, model.num_data)
    rows = [slice(start, min(start + step, total)) for start in range(0, total, step)]
    return [Batch(r, (), {name: _take(value, r) for name, value in given.items()}) for r in rows]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _take(value: Any, rows: slice) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, dict):
        return {key: _take(part, rows) for key, part in value.items()}
    return type(value)(_take(part, rows) for part in value) if isinstance(value, list | tuple) else value


def move(value: Any, device: torch.device | None) -> Any:
    """Arguments (tensors, or lists and dicts of them) on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(part, device) for key, part in value.items()}
    return type(value)(move(part, device) for part in value) if isinstance(value, list | tuple) else value


def concatenate(parts: list[Any]) -> Any:
    """Joins the rows of several batches of one argument (tensors, or lists and dicts of them)."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(concatenate(list(column)) for column in zip(*parts, strict=True))
    return torch.cat(parts)
