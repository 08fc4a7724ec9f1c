"""An endless stream of minibatches whose place can be written down and found again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyrobnn import random_state
from pyrobnn.training.checks import check_batch, check_loader, check_rows, check_targets, unpack
from pyrobnn.training.state import generators

__all__ = ["Batches", "all_data"]


class Batches:
    """Arguments of the model for each step.

    Args:
        model: The model.
        data: A loader of batches ``(x, y)``, gone through over and over, or a tuple: the model's arguments, the same at
            each step.
        device: Where the batches go; None leaves them.

    Attributes:
        epoch: Passes over the loader that are complete.
        is_first: Whether the batch given last is of the first pass.
    """

    def __init__(self, model: Any, data: Any, device: torch.device | str | None = None) -> None:
        self.model, self.data, self.device = model, data, device
        self.epoch = self.index = self.rows = 0
        self._iterator: Iterator[Any] | None = None
        self._random: dict[str, Any] | None = None
        self._pending: tuple[Any, ...] | None = None

    @property
    def is_first(self) -> bool:
        """Whether the loader is gone through for the first time."""
        return self.epoch == 0 and not (self._is_one and self.index > 1)

    @property
    def _is_one(self) -> bool:
        return isinstance(self.data, tuple)

    def check(self) -> None:
        """What can be told before the first batch.

        Raises:
            TypeError: If the data are an iterator, which is used up after one pass.
            ValueError: If their number is not the model's.
        """
        if not self._is_one:
            check_loader(self.model, self.data, 2)

    def peek(self) -> tuple[Any, ...]:
        """The coming batch, without moving on."""
        if self._pending is None:
            self._pending = self._fetch()
        return self._pending

    def next(self) -> tuple[Any, ...]:
        """The coming batch.

        Raises:
            TypeError: If a batch is not ``(x, y)``.
            ValueError: If the loader is empty, or a batch holds what the model cannot take.
        """
        args, self._pending = self.peek(), None
        self.index += 1
        return args

    def _fetch(self) -> tuple[Any, ...]:
        if self._is_one:
            args = tuple(_to(value, self.device) for value in self.data)
            if self.index == 0 and args:
                check_batch(args[0], 0)
                if len(args) == 2 and isinstance(args[1], Tensor):
                    check_targets(self.model, *args)
            self.data, self.device = args, None
            return args
        if self._iterator is None:
            self._begin()
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._end()
            return self._fetch()
        x, y = unpack(batch, self.device)
        check_batch(x, self.index)
        if self.epoch == 0:
            check_targets(self.model, x, y)
            self.rows += len(y)
        return x, y

    def _begin(self) -> None:
        self._random = random_state.read_all(generators(self.data))
        self._iterator = iter(self.data)

    def _end(self) -> None:
        if self.index == 0:
            raise ValueError("data: the loader yielded no batch; the data set is empty or drop_last left nothing.")
        if self.epoch == 0:
            check_rows(getattr(self.model, "num_data", None), self.data, self.rows)
        self.epoch, self.index, self._iterator = self.epoch + 1, 0, None

    # ------------------------------------------------------------------------------------- places in the stream

    def read(self) -> dict[str, Any]:
        """The place, and the random state in which the pass began; between batches only."""
        assert self._pending is None, "a batch is waiting"
        return {"epoch": self.epoch, "index": self.index, "rows": self.rows, "random": self._random}

    def write(self, place: dict[str, Any]) -> None:
        """Goes to a place that :meth:`read` read, by running through the pass up to there; changes the random state."""
        self.epoch, self.index, self.rows = place["epoch"], place["index"], place["rows"]
        self._pending, self._iterator, self._random = None, None, place["random"]
        if self._is_one or self._random is None or self.index == 0:
            return
        random_state.write_all(self._random, generators(self.data))
        self._iterator = iter(self.data)
        for _ in range(self.index):
            next(self._iterator)


def all_data(data: Any, device: torch.device | str | None) -> tuple[Any, ...]:
    """All data as the model's arguments: a tuple as it is, a loader's batches ``(x, y)`` joined.

    Raises:
        TypeError: If the inputs of a loader are no tensors.
        ValueError: If it yields nothing.
    """
    if isinstance(data, tuple):
        return tuple(_to(value, device) for value in data)
    pairs = [unpack(batch, device) for batch in data]
    if not pairs:
        raise ValueError("data: the loader yielded no batch.")
    if not all(isinstance(x, Tensor) for x, _ in pairs):
        raise TypeError("data: batches whose inputs are no tensors cannot be joined; pass a tuple (x, y) of all data.")
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _to(value: Any, device: torch.device | str | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value
