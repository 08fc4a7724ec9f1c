"""What all batches of a loader have in common, so that a resumed run notices other data."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor

from pyrobnn.core import schema
from pyrobnn.core.batches import Batch
from pyrobnn.core.trees import leaves

__all__ = ["FORM", "Form", "check_form", "common_form", "form_of"]

Form: TypeAlias = list[list[Any]]
"""For each leaf of inputs and targets its dtype or class, and its sizes; None for those that differ between batches."""

_SIZES = schema.items(schema.optional(schema.whole(0)))
FORM = schema.items(schema.items(schema.either("a dtype or sizes", schema.text, _SIZES), 2))


def form_of(batch: Batch) -> Form:
    """The form of one batch; sizes that may be its number of rows count as different."""
    return [
        [str(leaf.dtype), [None if size == batch.rows else size for size in leaf.shape]]
        if isinstance(leaf, Tensor)
        else [type(leaf).__name__, []]
        for leaf in leaves((batch.inputs, batch.targets))
    ]


def common_form(first: Form | None, second: Form) -> Form:
    """What two forms have in common; that of batches that are not made alike is empty."""
    if first is None:
        return second
    if [(kind, len(sizes)) for kind, sizes in first] != [(kind, len(sizes)) for kind, sizes in second]:
        return []
    return [
        [kind, [size if size == other else None for size, other in zip(sizes, others, strict=True)]]
        for (kind, sizes), (_, others) in zip(first, second, strict=True)
    ]


def check_form(argument: str, was: Form | None, now: Form | None, *, sizes: bool = True) -> None:
    """Refuses batches that differ from those that a resumed run began with.

    Args:
        argument: What the error names.
        was: The form of all batches of before; None or empty if that is not known.
        now: The form of batches now, likewise.
        sizes: Whether sizes are compared, too.

    Raises:
        ValueError: If they differ.
    """
    if was and now and (difference := _difference(was, now, sizes)) is not None:
        raise ValueError(f"{argument}: {difference}; a run is resumed with the data that it began with.")


def _difference(was: Form, now: Form, sizes: bool) -> str | None:
    """In words, how batches differ from those of before; None if they do not."""
    if len(was) != len(now):
        return f"a batch held {len(was)} tensors, but now it holds {len(now)}"
    for index, ((kind, old), (other, new)) in enumerate(zip(was, now, strict=True)):
        what = "the targets" if index == len(now) - 1 else "an input"
        if str(kind) != str(other):
            return f"{what} of a batch had the kind {kind}, but now it is {other}"
        pairs = zip(old, new, strict=False)
        if len(old) != len(new) or (sizes and any(a != b and None not in (a, b) for a, b in pairs)):
            before, after = (["B" if size is None else size for size in shape] for shape in (old, new))
            return f"{what} of a batch had the shape {before}, but now it is {after}".replace("'", "")
    return None
