"""The number N of data that a loader stands for: the one place that decides it.

N is the number of rows that a posterior is about. A loader says it by its data set, by the sampler of a subset, or by
the rows of a list of batches; of any other loader the rows of one pass are counted.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, WeightedRandomSampler

from pyrobnn.core.batches import Batch, Reader

__all__ = ["check_counted_rows", "check_stated_rows", "check_whole_pass", "stated_rows"]


def stated_rows(loader: Any, argument: str = "loader") -> tuple[int, ...]:
    """The numbers of data N that a loader is consistent with; empty if only a pass would tell.

    A sampler of a subset determines N by its length. For samplers that draw with replacement or that give each
    process a part, the length of the data set does. For weighted sampling it may be either. The rows of a list of
    batches are counted. A ``DataLoader`` that does not batch (``batch_size=None``) takes items of any number of rows.

    Args:
        loader: The loader.
        argument: What errors name.

    Raises:
        TypeError: If a batch of a list is of no known form.
        ValueError: If its targets have different numbers of rows.
    """
    if type(loader) in (list, tuple):
        return (sum(Batch.read(raw, argument=argument).rows for raw in loader),) if loader else ()
    data, sampler = _size_of_data_set(loader), _sampler(loader)
    if _is_unbatched(loader) or (getattr(loader, "batch_sampler", None) is not None and sampler is None):
        return ()
    if not isinstance(sampler, Sized) or isinstance(sampler, RandomSampler | DistributedSampler):
        return data
    if isinstance(sampler, WeightedRandomSampler):
        return tuple(dict.fromkeys((len(sampler), *data)))
    return (len(sampler),)


def check_stated_rows(num_data: int | None, loader: Any, reader: Reader | None, argument: str = "loader") -> None:
    """Checks what the loader says of N before it is iterated.

    Args:
        num_data: The model's N; None if it declares none.
        loader: The loader.
        reader: How batches are read; one may make other rows of what the data set has, so that a pass is counted.
        argument: What errors name.

    Raises:
        TypeError: If a batch of a list is of no known form.
        ValueError: If N is another.
    """
    if num_data is None or reader is not None or not (stated := stated_rows(loader, argument)) or num_data in stated:
        return
    what = "batches have" if type(loader) in (list, tuple) else "data set has"
    if len(stated) == 1 and what == "data set has" and stated != _size_of_data_set(loader):
        what = "sampler has"
    raise ValueError(
        f"num_data: the model was built for {num_data} data, but the {argument}'s {what} {stated[0]} rows; the KL "
        f"would have the wrong weight. Build the model with num_data={stated[0]}, or set model.num_data."
    )


def check_counted_rows(num_data: int | None, loader: Any, rows: int, reader: Reader | None) -> None:
    """Checks the number of rows that a loader yielded in a pass, if its N could not be checked before.

    Raises:
        ValueError: If it is another, and not the length of a data set of which a pass leaves something out.
    """
    if num_data is None or rows == num_data or (reader is None and stated_rows(loader)):
        return
    if num_data not in _size_of_data_set(loader):
        raise ValueError(
            f"num_data: the model was built for {num_data} data, but the loader yielded {rows} rows in one pass; build "
            f"the model with num_data={rows}."
        )


def check_whole_pass(loader: Any, what: str, argument: str = "loader") -> None:
    """Refuses samplers that repeat rows of the data set or leave some out, even if their number is right.

    Args:
        loader: The loader.
        what: What needs each row once.
        argument: What the error names.

    Raises:
        ValueError: If its sampler is one of these.
    """
    sampler: Any = _sampler(loader)
    if isinstance(sampler, RandomSampler):
        is_whole = not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    elif isinstance(sampler, WeightedRandomSampler):
        is_whole = not sampler.replacement and sampler.num_samples == len(sampler.weights)
    else:
        is_whole = not isinstance(sampler, DistributedSampler) or sampler.num_replicas == 1
    if not is_whole:
        raise ValueError(
            f"{argument}: its {type(sampler).__name__} repeats rows or leaves some out, but {what} needs each row "
            "once; pass a DataLoader of the data set without it (weights of rows are the third entry of a batch)."
        )


def _sampler(loader: Any) -> Sampler | None:
    """The sampler of rows that the loader uses."""
    batches = getattr(loader, "batch_sampler", None)  # beside which the loader's own is one that it does not use
    return getattr(loader if batches is None else batches, "sampler", None)


def _size_of_data_set(loader: Any) -> tuple[int, ...]:
    data = getattr(loader, "dataset", None)
    return (len(data),) if isinstance(data, Sized) and not _is_unbatched(loader) else ()


def _is_unbatched(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and loader.batch_sampler is None
