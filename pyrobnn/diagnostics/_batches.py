"""The model's arguments in batches of rows, so that memory does not grow with the data."""

from __future__ import annotations

import inspect
from types import EllipsisType
from typing import Any, NamedTuple

from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.trees import num_rows, take_rows
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["Piece", "batches"]


class Piece(NamedTuple):
    """Arguments for one run of the model, the rows of the data they are (all of them: ``...``), and their weights."""

    rows: slice | EllipsisType
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weight: Tensor | None = None


def batches(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], batch_size: int) -> list[Piece]:
    """The arguments in batches of rows for a :class:`SupervisedModel`; other models see all data at once.

    So do networks among whose inputs something has not one entry for each row: a graph, a packed sequence, a table.

    Raises:
        ValueError: If ``batch_size`` is not positive, or the arguments have no rows.
    """
    check_positive_int("batch_size", batch_size)
    if not isinstance(model, SupervisedModel):
        return [Piece(..., args, kwargs)]
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    has_targets = given.get("y") is not None
    try:
        total = num_rows(given["y"] if has_targets else given["x"])
    except ValueError:  # inputs of several lengths, or no tensors
        return [Piece(..., (), given)]
    if not total:
        raise ValueError("x, y: expected tensors with at least one row, got 0 rows.")
    step = min(batch_size, model.num_data)
    rows = [slice(start, min(start + step, total)) for start in range(0, total, step)]
    try:
        parts = [take_rows(given, part, total) for part in rows]
    except ValueError:
        rows, parts = [slice(0, total)], [given]
    return [Piece(r, (), part, part.get("weight")) for r, part in zip(rows, parts, strict=True)]
