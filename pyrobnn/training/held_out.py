"""A part of the training data that is held out of a run, to stop it early."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from pyrobnn.core.batches import loader_options
from pyrobnn.model.declarations import declared_num_data

__all__ = ["held_out"]

FRACTION = 0.1
_LEAST = 10  # rows, of which one is held out
_SEED = 0


@contextlib.contextmanager
def held_out(model: nn.Module, loader: Any) -> Iterator[tuple[DataLoader[Any], DataLoader[Any]]]:
    """Loaders of nine tenths of the data, and of the others; ``model.num_data`` is that of the former in the block.

    Which rows are held out depends on their number alone, so that further runs on the same data hold out the same.

    Args:
        model: A model that declares ``num_data``.
        loader: A plain ``DataLoader`` of a data set with a length, in order or shuffled.

    Yields:
        The loaders for training and for validation. Batch size, workers and collation are those of ``loader``.

    Raises:
        TypeError: If the loader or the model is of another kind.
        ValueError: If there are fewer than 10 rows, or not ``num_data``.
    """
    rows = _rows(loader)
    num_data = declared_num_data(model)
    if num_data is None:
        raise TypeError(
            f"early_stopping: {type(model).__name__} does not declare num_data, which must be that of the rows it is "
            "trained on; split the data and pass validation=."
        )
    if num_data != len(rows):
        raise ValueError(
            f"early_stopping: the data set has {len(rows)} items but the model num_data={num_data}, so that it is "
            "unknown what a tenth of it is; split the data and pass validation=."
        )
    if len(rows) < _LEAST:
        raise ValueError(
            f"early_stopping: a tenth of {len(rows)} rows is less than one; pass validation=, or the number of epochs."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SEED), device="cpu").tolist()
    kept = len(rows) - math.floor(FRACTION * len(rows))
    chosen = [rows[index] for index in sorted(order[:kept])]
    others = [rows[index] for index in sorted(order[kept:])]
    training, validation = _with_rows(loader, chosen, training=True), _with_rows(loader, others, training=False)
    declared: Any = model
    try:
        declared.num_data = kept
    except AttributeError as error:
        raise TypeError(
            f"early_stopping: num_data of {type(model).__name__} cannot be set to that of the rows trained on; split "
            "the data and pass validation=."
        ) from error
    try:
        yield training, validation
    finally:
        declared.num_data = num_data


def _rows(loader: Any) -> list[int]:
    """Indices of the data set that a loader visits."""
    advice = "; split the data yourself and pass validation= the batches to stop by"
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"early_stopping: rows can be held out of a DataLoader, not of a {type(loader).__name__}{advice}."
        )
    batches = loader.batch_sampler
    if (
        type(loader) is not DataLoader
        or isinstance(loader.dataset, IterableDataset)
        or type(batches) is not BatchSampler
    ):
        raise TypeError(
            "early_stopping: rows can be held out of a plain DataLoader of a data set with a length, but this one is "
            f"of a kind of its own, or its batches are not made row by row{advice}."
        )
    sampler = batches.sampler
    size = len(loader.dataset)  # type: ignore[arg-type]
    if isinstance(sampler, SubsetRandomSampler):
        return [int(index) for index in sampler.indices]
    whole = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == size
    if not whole and not isinstance(sampler, SequentialSampler):
        raise TypeError(
            f"early_stopping: rows can be held out of loaders in order or shuffled, not with a "
            f"{type(sampler).__name__}{advice}."
        )
    return list(range(size))


def _with_rows(loader: DataLoader[Any], rows: list[int], *, training: bool) -> DataLoader[Any]:
    batches: Any = loader.batch_sampler
    data: Subset[Any] = Subset(loader.dataset, rows)
    shuffled = training and not isinstance(batches.sampler, SequentialSampler)
    sampler = RandomSampler(data, generator=batches.sampler.generator) if shuffled else SequentialSampler(data)
    return DataLoader(
        data,
        batch_size=batches.batch_size,
        sampler=sampler,
        drop_last=training and batches.drop_last,
        generator=loader.generator if training else None,
        **loader_options(loader),
    )
