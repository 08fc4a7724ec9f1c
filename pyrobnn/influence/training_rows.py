"""The training data as rows in a fixed order, which are the columns of every influence matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.trees import leaves, refuse_arrays
from pyrobnn.model.num_data import check_stated_rows, check_whole_pass
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training.checks import check_targets

__all__ = ["TrainingRows", "read_test"]


class TrainingRows:
    """All rows of a loader, read once and kept.

    Args:
        model: The model.
        loader: Batches of the whole data set, in an order that is the same in each pass.
        reader: How to read what it yields.

    Attributes:
        batches: The batches.
        rows: Number N of rows.
        weight: The weight ω of each row's log likelihood, ``[N]``, in double precision.

    Raises:
        TypeError: If the model is no :class:`~pyrobnn.SupervisedModel`, or a batch of no known form.
        ValueError: If the loader shuffles or has not each of ``num_data`` rows once, or the data are wrong.
    """

    def __init__(self, model: Any, loader: Iterable[Any], reader: Reader | None = None) -> None:
        if not isinstance(model, SupervisedModel):
            raise TypeError(
                f"model: influence needs the loss of each row, which a SupervisedModel has; got {type(model).__name__}."
            )
        if isinstance(getattr(loader, "sampler", None), RandomSampler):
            raise ValueError(
                "loader: it shuffles, so that nobody could tell which row a column is; pass shuffle=False, or a list "
                "of batches."
            )
        check_stated_rows(model.num_data, loader, reader)
        check_whole_pass(loader, "influence")
        device = next(model.parameters()).device
        self.batches = [Batch.read(raw, device, reader) for raw in loader]
        self.rows = sum(batch.rows for batch in self.batches)
        if self.rows != model.num_data:
            raise ValueError(
                f"loader: it yielded {self.rows} rows, but the model has num_data={model.num_data}; pass all data that "
                "the guide was fitted to."
            )
        for index, batch in enumerate(self.batches):
            batch.check(index)
            check_targets(model, batch)
        ones = [torch.ones(batch.rows) if batch.weight is None else batch.weight for batch in self.batches]
        self.weight = torch.cat([weight.detach().double().to(device) for weight in ones])

    def part(self, rows: Sequence[int]) -> Batch:
        """The named rows as one batch, in their order.

        Raises:
            ValueError: If a batch cannot be cut into rows.
        """
        parts, start = [], 0
        order: list[int] = []
        for batch in self.batches:
            own = [place for place, row in enumerate(rows) if start <= row < start + batch.rows]
            if own:
                parts.append(batch.part(torch.tensor([rows[place] - start for place in own], device=batch.device)))
                order += own
            start += batch.rows
        joined = parts[0] if len(parts) == 1 else Batch.join(parts)
        back = torch.tensor(order, device=joined.device).argsort()
        return joined if order == sorted(order) else joined.part(back)

    def check_rows(self, rows: Any) -> list[int]:
        """Row numbers as a list of ints.

        Raises:
            TypeError: If they are none.
            ValueError: If there is none, or no such row.
        """
        listed = rows.tolist() if isinstance(rows, Tensor) and not rows.is_floating_point() else rows
        if isinstance(listed, int) and not isinstance(listed, bool):
            listed = [listed]
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise TypeError(f"rows: expected numbers of training rows, got {rows!r}.")
        if not all(isinstance(row, int) and not isinstance(row, bool) for row in listed):
            raise TypeError(f"rows: expected numbers of training rows, got {rows!r}.")
        if not listed or not all(0 <= row < self.rows for row in listed):
            raise ValueError(f"rows: expected at least one row number from 0 to {self.rows - 1}, got {listed!r}.")
        return list(listed)

    def check_groups(self, groups: Any) -> list[list[int]]:
        """Groups of rows as lists; a Boolean matrix ``[G, N]`` names the rows of each group.

        Raises:
            TypeError: If they are neither.
            ValueError: If there is none, one is empty or names a row twice, or there is no such row.
        """
        if isinstance(groups, Tensor) and groups.dtype == torch.bool:
            if groups.dim() != 2 or groups.shape[1] != self.rows:
                raise ValueError(
                    f"groups: expected a mask [G, {self.rows}] of the training rows, got {list(groups.shape)}."
                )
            groups = [mask.nonzero().flatten().tolist() for mask in groups]
        if not isinstance(groups, Sequence) or isinstance(groups, str) or not len(groups):
            raise TypeError(f"groups: expected a list of lists of rows, or a Boolean mask [G, N], got {groups!r}.")
        found = []
        for group in groups:
            try:
                listed = self.check_rows(group)
            except (TypeError, ValueError) as error:
                raise type(error)(f"groups: {str(error).removeprefix('rows: ')}") from error
            if len(set(listed)) != len(listed):
                raise ValueError(f"groups: the group {listed!r} names a row twice.")
            found.append(listed)
        return found


def read_test(model: SupervisedModel, x: Any, y: Any) -> Batch:
    """Test data as one batch.

    Raises:
        TypeError: If inputs or targets are of a wrong kind.
        ValueError: If they do not fit each other or the likelihood, or hold NaN.
    """
    refuse_arrays(x, "x: the inputs")
    if isinstance(x, type) or not any(callable(getattr(leaf, "to", None)) for leaf in leaves(x)):
        raise TypeError(f"x: expected tensors as inputs, got {x!r}.")
    batch = Batch.of(x, y, argument="y").to(next(model.parameters()).device)
    batch.check(0)
    check_targets(model, batch)
    return batch
