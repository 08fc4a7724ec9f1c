"""Batches of few labeled rows and many unlabeled ones, side by side, for games and other loops of one loader."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int

__all__ = ["SemiSupervisedBatches", "check_labels"]


class SemiSupervisedBatches:
    """Batches ``(x, y, unlabeled)``: a pass goes through the unlabeled rows once; labeled ones are drawn at random.

    Args:
        x: Labeled inputs ``[L, ...]``.
        y: Their classes ``[L]``.
        unlabeled: Unlabeled inputs ``[U, ...]``; labeled ones may be among them.
        num_classes: K.
        labeled_size: Labeled rows of a batch, drawn with replacement.
        batch_size: Unlabeled rows of a batch; a last batch that is not full is left out.

    Raises:
        TypeError: If ``y`` are no integers.
        ValueError: If rows do not match, a class is out of range, or has no labeled row at all.
    """

    def __init__(
        self, x: Tensor, y: Tensor, unlabeled: Tensor, num_classes: int, labeled_size: int = 100, batch_size: int = 100
    ) -> None:
        check_positive_int("labeled_size", labeled_size)
        check_positive_int("batch_size", batch_size)
        check_labels(y, num_classes)
        if len(x) != len(y):
            raise ValueError(f"y: {len(y)} classes of {len(x)} labeled inputs.")
        if x.shape[1:] != unlabeled.shape[1:]:
            raise ValueError(
                f"unlabeled: rows of shape {tuple(unlabeled.shape[1:])}, but labeled ones have {tuple(x.shape[1:])}."
            )
        if len(unlabeled) < batch_size:
            raise ValueError(f"unlabeled: {len(unlabeled)} rows are fewer than the {batch_size} of a batch.")
        missing = sorted(set(range(num_classes)) - set(y.tolist()))
        if missing:
            raise ValueError(f"y: no labeled row of the classes {missing}; a class without a label cannot be learned.")
        self.x, self.y, self.unlabeled = x, y, unlabeled
        self.labeled_size, self.batch_size = labeled_size, batch_size

    def __len__(self) -> int:
        """Batches of a pass."""
        return len(self.unlabeled) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One pass, in an order drawn from torch's global random state."""
        order = torch.randperm(len(self.unlabeled))
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            drawn = torch.randint(len(self.x), (self.labeled_size,))
            yield self.x[drawn], self.y[drawn], self.unlabeled[rows]


def check_labels(y: object, num_classes: int) -> None:
    """Refuses what are no classes ``[B]`` of 0 to K - 1.

    Raises:
        TypeError: If they are no integers.
        ValueError: If one is not among the K.
    """
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(
            f"y: expected integer classes [B], got {y.dtype if isinstance(y, Tensor) else type(y).__name__}."
        )
    if y.dim() != 1 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < num_classes):
        values = f"values from {int(y.min())} to {int(y.max())}" if y.numel() else "no values"
        raise ValueError(
            f"y: expected classes [B] from 0 to {num_classes - 1}, got shape {tuple(y.shape)} with {values}."
        )
