"""Checked tensors as arrays, for the figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrobnn.metrics._checks import check_float

__all__ = ["require_same_length", "to_numpy", "vector"]


def to_numpy(tensor: Tensor) -> NDArray[np.float64]:
    """The values in double precision, detached, on the CPU."""
    return tensor.detach().cpu().double().numpy()


def vector(values: Tensor, name: str) -> NDArray[np.float64]:
    """Finite values ``[N]`` or ``[N, 1]`` as ``[N]``.

    Raises:
        TypeError: If they are not floating point.
        ValueError: If the shape is another or a value is not finite.
    """
    values = check_float(values, name, finite=True)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"{name}: expected shape [N] or [N, 1], got {list(values.shape)}.")
    return to_numpy(values)


def require_same_length(columns: Mapping[str, NDArray[np.float64]]) -> None:
    """Refuses columns that are empty or of different lengths.

    Raises:
        ValueError: If they are.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"expected equal lengths of at least 1, got {lengths}.")
