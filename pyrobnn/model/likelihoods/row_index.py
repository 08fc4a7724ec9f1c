"""What selects some of the inputs of a prediction."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_row_index"]


def check_row_index(index: object, count: int) -> None:
    """Refuses what selects none of N inputs, or something else than inputs.

    Args:
        index: A slice, numbers of inputs, or a mask ``[N]``.
        count: Number N of inputs.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it selects none, a mask is not ``[N]``, or there is no input of such a number.
    """
    if isinstance(index, slice):
        selected = len(range(*index.indices(count)))
    elif not isinstance(index, Tensor) or index.is_floating_point() or index.is_complex():
        kind = f"tensor of {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index: expected a slice, or a tensor of numbers of inputs or a mask, got {kind}.")
    elif index.dtype == torch.bool:
        if index.shape != (count,):
            raise ValueError(f"index: expected a mask of the {count} inputs, got one of shape {list(index.shape)}.")
        selected = int(index.sum())
    else:
        if index.dim() != 1:
            raise ValueError(f"index: expected a vector of numbers of inputs, got shape {list(index.shape)}.")
        wrong = (index < -count) | (index >= count)
        if bool(wrong.any()):
            raise ValueError(f"index: there are {count} inputs, and none of number {int(index[wrong][0])}.")
        selected = len(index)
    if not selected:
        raise ValueError(f"index: it selects none of the {count} inputs; leave an empty selection out.")
