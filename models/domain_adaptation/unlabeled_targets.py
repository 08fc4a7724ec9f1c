"""Loaders of targets whose labels, if there are any, are not read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from pyrobnn.core.batches import inputs_of
from pyrobnn.objectives import UnlabeledLoader

__all__ = ["unlabeled"]


class _Unlabeled:
    """Batches without their labels; warns once if there are any."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader, self.has_warned = loader, False

    def __iter__(self) -> Iterator[Any]:
        for raw in self.loader:
            x, labels = inputs_of(raw, "target")
            if labels is not None and not self.has_warned:
                self.has_warned = True
                warnings.warn(
                    "target: its batches have labels, which are not read; to be sure that none leaks, pass inputs.",
                    stacklevel=2,
                )
            yield x


def unlabeled(target: Any) -> Any:
    """The targets as terms take them.

    Raises:
        TypeError: If they are no loader that can be gone through again.
    """
    if isinstance(target, UnlabeledLoader):
        return target
    if isinstance(target, Tensor | str | bytes | type | Iterator) or not isinstance(target, Iterable):
        raise TypeError(
            "target: expected an UnlabeledLoader or a loader of inputs that can be gone through again, got "
            f"{type(target).__name__}."
        )
    return _Unlabeled(target)
