"""Which rows a posterior was trained on, as far as it can be told, without keeping the data alive.

What is fitted to predictions (calibration, conformal sets) must not see the rows of the training, on which networks are
too good. :func:`remember` notes the data set of a loader, or the memory of its tensors, by weak references;
:func:`were_trained_on` says whether inputs or a loader share rows with it. Copies of rows, other data sets over the
same files, and posteriors loaded from a checkpoint are not recognized.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, SubsetRandomSampler, TensorDataset

from pyrobnn.core.trees import leaves

__all__ = ["remember", "share_rows", "were_trained_on"]

_MOST_BATCHES = 1000  # of a list of batches that are looked at


@dataclass(frozen=True)
class _Rows:
    """Some rows of a data set or of a tensor; all if ``indices`` is None."""

    source: weakref.ref[Any]
    indices: frozenset[int] | None


_TRAINED: weakref.WeakKeyDictionary[Any, list[_Rows]] = weakref.WeakKeyDictionary()


def remember(posterior: Any, loader: Iterable[Any]) -> None:
    """Notes that a posterior is trained on the rows of a loader, in addition to what it was trained on before."""
    known = [row for row in _TRAINED.get(posterior, []) if row.source() is not None]
    _TRAINED[posterior] = known + [row for row in _rows(loader) if not any(_are_same(row, other) for other in known)]


def were_trained_on(posterior: Any, data: Any) -> bool:
    """Whether inputs or a loader are known to share rows with what a posterior was trained on."""
    try:
        known = _TRAINED.get(posterior, [])
    except TypeError:  # draws in a dict are not remembered
        return False
    return bool(known) and any(_overlap(a, b) for a in known for b in _rows(data))


def share_rows(first: Any, second: Any) -> bool:
    """Whether two loaders are known to have rows in common."""
    others = _rows(second)
    return any(_overlap(a, b) for a in _rows(first) for b in others)


def _rows(data: Any) -> list[_Rows]:
    if isinstance(data, DataLoader):
        sampler = data.sampler
        chosen = sampler.indices if isinstance(sampler, SubsetRandomSampler) else None
        return _of_dataset(data.dataset, None if chosen is None else [int(i) for i in chosen])
    if isinstance(data, list):
        return [row for batch in data[:_MOST_BATCHES] for row in _of_inputs(batch)]
    if isinstance(data, Tensor | tuple | Mapping):
        return _of_inputs(data)
    return _referenced(data, None)


def _of_inputs(data: Any) -> list[_Rows]:
    tensors = (leaf for leaf in leaves(data) if isinstance(leaf, Tensor))
    return _referenced(next(tensors, None), None)


def _of_dataset(dataset: Any, indices: list[int] | None) -> list[_Rows]:
    while isinstance(dataset, Subset):
        inner = [int(i) for i in dataset.indices]
        indices = inner if indices is None else [inner[i] for i in indices]
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset):
        found, start = [], 0
        for part, end in zip(dataset.datasets, dataset.cumulative_sizes, strict=True):
            chosen = None if indices is None else [i - start for i in indices if start <= i < end]
            found += _of_dataset(part, chosen)
            start = end
        return found
    source = dataset.tensors[0] if isinstance(dataset, TensorDataset) else dataset
    return _referenced(source, None if indices is None else frozenset(indices))


def _referenced(source: Any, indices: frozenset[int] | None) -> list[_Rows]:
    try:
        return [] if source is None else [_Rows(weakref.ref(source), indices)]
    except TypeError:  # a list, a tuple
        return []


def _are_same(first: _Rows, second: _Rows) -> bool:
    return first.source() is second.source() and first.indices == second.indices


def _overlap(first: _Rows, second: _Rows) -> bool:
    a, b = first.source(), second.source()
    if a is None or b is None:
        return False
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _share_memory(a, first.indices, b, second.indices)
    if a is not b:
        return False
    if first.indices is None or second.indices is None:
        return (first.indices is None or bool(first.indices)) and (second.indices is None or bool(second.indices))
    return not first.indices.isdisjoint(second.indices)


def _share_memory(a: Tensor, rows_a: frozenset[int] | None, b: Tensor, rows_b: frozenset[int] | None) -> bool:
    """Whether rows of two tensors lie in one place; views and slices of one tensor do, copies do not."""
    if not (a.dim() and b.dim() and a.is_contiguous() and b.is_contiguous() and a.device == b.device):
        return a is b
    if not (a.numel() and b.numel()) or a[0].nbytes != b[0].nbytes:
        return False
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    size = a[0].nbytes
    shift = (b.data_ptr() - a.data_ptr()) // size  # row i of b is row i + shift of a
    if rows_a is None and rows_b is None:
        return shift < len(a) and shift + len(b) > 0
    first = range(len(a)) if rows_a is None else rows_a
    second = range(len(b)) if rows_b is None else rows_b
    return any(i + shift in first for i in second)
