"""The model's arguments, whole or in batches of rows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import EllipsisType
from typing import Any, NamedTuple

from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Batch
from pyrobnn.core.trees import leaves, num_rows, refuse_arrays, take_rows
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training.checks import check_targets

__all__ = ["Piece", "batches", "room_for"]


class Piece(NamedTuple):
    """Arguments for one run of the model, the rows of the data they are (all of them: ``...``), and their weights."""

    rows: slice | EllipsisType
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weight: Tensor | None = None


def batches(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], batch_size: int | None) -> list[Piece]:
    """The arguments as one call of the model, or in batches of rows if ``batch_size`` declares that they may be cut.

    Only the arguments of a :class:`SupervisedModel` are ever cut.

    Raises:
        TypeError: If the inputs are no tensors.
        ValueError: If ``batch_size`` is not positive, something has not one entry for each row although it is
            given, the arguments have no rows, or the targets do not fit.
    """
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
    if not isinstance(model, SupervisedModel):
        return [Piece(..., args, kwargs)]
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    x = given.get("x")
    refuse_arrays(x, "x: the inputs")
    if isinstance(x, type) or not any(callable(getattr(leaf, "to", None)) for leaf in leaves(x)):
        raise TypeError(f"x: expected tensors as inputs, got {x!r}.")
    targets = given.get("y")
    try:
        total = num_rows(given["x"] if targets is None else targets)
    except ValueError:  # inputs of several lengths, or no tensors
        if batch_size is not None:
            raise
        return [Piece(..., (), given)]
    if not total:
        raise ValueError("x, y: expected tensors with at least one row, got 0 rows.")
    if targets is not None:
        check_targets(model, Batch.of(x, targets, argument="y"))
    if batch_size is None:
        return [Piece(... if targets is None else slice(0, total), (), given, given.get("weight"))]
    step = min(batch_size, model.num_data)
    rows = [slice(start, min(start + step, total)) for start in range(0, total, step)]
    parts = [take_rows(given, part, total) for part in rows]
    return [Piece(r, (), part, part.get("weight")) for r, part in zip(rows, parts, strict=True)]


@contextmanager
def room_for(model: Any, pieces: Sequence[Piece]) -> Iterator[None]:
    """Lets a :class:`SupervisedModel` take as many rows at once as these are, though it was built for fewer data.

    Scales N/B mean nothing in the block.
    """
    largest = max((piece.rows.stop - piece.rows.start for piece in pieces if isinstance(piece.rows, slice)), default=0)
    if not isinstance(model, SupervisedModel) or largest <= model.num_data:
        yield
        return
    num_data, model.num_data = model.num_data, largest
    try:
        yield
    finally:
        model.num_data = num_data
