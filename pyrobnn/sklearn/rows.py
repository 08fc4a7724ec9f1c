"""Rows of a table in memory: batches for training, and rows held out to stop by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["LEAST_HELD_OUT", "LEAST_ROWS", "ShuffledBatches", "default_batch_size", "held_out_rows"]

LEAST_ROWS, LEAST_HELD_OUT = 50, 10
"""Fewer rows are too few to hold some out; from fewer held-out rows the best epoch cannot be told."""


class ShuffledBatches:
    """Batches ``(x, y)`` of tensors in memory, in a new order at each pass.

    A last batch that is not full is left out, unless it is the only one, so that each step sees as many rows.

    Args:
        x: Inputs ``[N, D]``.
        y: Targets ``[N, ...]``.
        batch_size: Rows of a batch.
    """

    def __init__(self, x: Tensor, y: Tensor, batch_size: int) -> None:
        self.x, self.y, self.batch_size = x, y, min(batch_size, len(x))

    @property
    def dataset(self) -> range:
        """As long as the data, which is what a loader's data set is asked for."""
        return range(len(self.x))

    def __len__(self) -> int:
        return len(self.x) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x))
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            yield self.x[rows], self.y[rows]

    def in_order(self) -> list[tuple[Tensor, Tensor]]:
        """All rows once, for what needs a whole pass."""
        return list(zip(self.x.split(1024), self.y.split(1024), strict=True))


def default_batch_size(num_rows: int) -> int:
    """64 rows, from 10,000 rows of data on 256."""
    return 64 if num_rows < 10_000 else 256


def held_out_rows(
    num_rows: int, fraction: float, random: np.random.RandomState, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows to train on, and of those held out.

    Args:
        num_rows: Number N of rows.
        fraction: Share of them to hold out; at least 10 rows are, of fewer than 50 rows none.
        random: Chooses them.
        labels: Classes ``[N]``, of each of which the share is held out; the first row of a class in the random order
            is always trained on.

    Returns:
        Two sorted arrays, the second of which may be empty.
    """
    if num_rows < LEAST_ROWS:
        return np.arange(num_rows), np.arange(0)
    fraction = max(fraction, LEAST_HELD_OUT / num_rows)
    order = random.permutation(num_rows)
    groups = [order] if labels is None else [order[labels[order] == label] for label in np.unique(labels)]
    held = [group[len(group) - min(round(fraction * len(group)), len(group) - 1) :] for group in groups]
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(num_rows), chosen), chosen
