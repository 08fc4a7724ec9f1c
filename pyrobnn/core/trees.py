"""Trees of tensors: what networks take as inputs, moved, counted, cut by rows and joined.

A tree is a leaf, or a tuple, namedtuple, list or mapping of trees. Leaves are tensors, packed sequences, and whatever
else is none of these containers, such as a graph; None stands for an optional entry that is not there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["RowIndex", "join_rows", "leaves", "map_leaves", "num_rows", "refuse_arrays", "take_rows", "to_device"]

RowIndex: TypeAlias = slice | Tensor
"""Which rows: a slice, or a tensor of indices or Booleans."""


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree like this one with ``function`` of each leaf; None entries stay.

    Containers keep their class (mappings that cannot be changed become dicts).
    """
    if tree is None:
        return None
    if isinstance(tree, Tensor | PackedSequence):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_leaves(function, value) for key, value in tree.items()}
        if type(tree) is dict or not isinstance(tree, MutableMapping):
            return mapped
        twin = copy.copy(tree)
        twin.update(mapped)
        return twin
    if isinstance(tree, tuple | list):
        values = [map_leaves(function, value) for value in tree]
        kind: Any = type(tree)
        return kind._make(values) if hasattr(kind, "_fields") else kind(values)
    return function(tree)


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of a tree, as for :func:`map_leaves`."""
    if tree is None:
        return
    if isinstance(tree, Mapping | tuple | list) and not isinstance(tree, PackedSequence):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from leaves(value)
    else:
        yield tree


def is_empty(tree: Any) -> bool:
    """Whether the tree holds nothing but tensors without rows."""
    return all(isinstance(leaf, Tensor) and leaf.dim() and not len(leaf) for leaf in leaves(tree))


def refuse_arrays(tree: Any, what: str) -> None:
    """Refuses NumPy arrays, of which only the caller knows the dtype that the network takes.

    Args:
        tree: A tree.
        what: What it is, as the subject of the message.

    Raises:
        TypeError: If a leaf is one.
    """
    for leaf in () if isinstance(tree, Tensor) else leaves(tree):
        if isinstance(leaf, np.ndarray):
            raise TypeError(
                f"{what} hold a numpy.ndarray of {leaf.dtype}; convert it by torch.as_tensor(array, "
                "dtype=torch.float32), say, or wrap the data set in a DataLoader, which does."
            )


def to_device(tree: Any, device: torch.device | str | None) -> Any:
    """The tree with its tensors, and all else that has a method ``to``, on ``device``; None leaves it as it is."""
    if device is None:
        return tree
    moved: dict[int, Any] = {}  # what occurs twice in the tree is moved once

    def move(leaf: Any) -> Any:
        if id(leaf) not in moved:
            moved[id(leaf)] = leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf
        return moved[id(leaf)]

    return map_leaves(move, tree)


def num_rows(tree: Any) -> int:
    """The number of rows that all tensors of the tree have in common; of a packed sequence, its sequences.

    Raises:
        ValueError: If there is no tensor, or they have different numbers of rows.
    """
    if isinstance(tree, Tensor) and tree.dim():
        return len(tree)
    lengths = set()
    for leaf in leaves(tree):
        if isinstance(leaf, PackedSequence):
            lengths.add(int(leaf.batch_sizes[0]))
        elif isinstance(leaf, Tensor) and leaf.dim():
            lengths.add(len(leaf))
    if len(lengths) != 1:
        raise ValueError(f"expected tensors with the same number of rows, got {sorted(lengths)} rows.")
    return lengths.pop()


def take_rows(tree: Any, index: RowIndex, rows: int) -> Any:
    """The tree with the rows ``index`` of each tensor; plain numbers, Booleans and tensors of no dimension stay.

    Raises:
        ValueError: If anything else is a leaf, or a tensor has not ``rows`` rows.
    """

    def take(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows:
            return leaf[index]
        if isinstance(leaf, bool | int | float) or (isinstance(leaf, Tensor) and not leaf.dim()):
            return leaf
        kind = f"tensor of shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
        raise ValueError(
            f"batch: it cannot be cut into parts, since a {kind} in it does not have one entry for each of the {rows} "
            "rows; use it whole (no groups, a batch size of all rows)."
        )

    return map_leaves(take, tree)


def join_rows(trees: Sequence[Any]) -> Any:
    """One tree with the rows of all; what is no tensor, or a tensor of no dimension, is taken from the first.

    Raises:
        TypeError: If the trees are not made alike.
        ValueError: If rows have different shapes, or there is a packed sequence.
    """
    columns = [list(leaves(tree)) for tree in trees]
    if len({len(column) for column in columns}) != 1:
        raise TypeError("batch: batches whose inputs are not made alike cannot be joined.")
    following = iter(zip(*columns, strict=True))

    def join(first: Any) -> Any:
        parts = next(following)
        if isinstance(first, PackedSequence):
            raise ValueError("batch: packed sequences cannot be joined; pass all of them as one batch.")
        if not isinstance(first, Tensor) or not first.dim():
            return first
        if not all(isinstance(part, Tensor) for part in parts):
            raise TypeError("batch: batches whose inputs are not made alike cannot be joined.")
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            raise ValueError(
                f"batch: batches whose rows have different shapes, {sorted(map(list, shapes))}, cannot be joined; pad "
                "them to one length."
            )
        return torch.cat(parts)

    return map_leaves(join, trees[0])
