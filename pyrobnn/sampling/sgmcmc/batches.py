"""An endless stream of minibatches whose position can be saved and restored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.batch_form import Form, check_form, common_form, form_of
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.finite import check_inputs
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.trees import leaves, to_device
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.model.num_data import check_counted_rows, check_whole_pass
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training.checks import check_loader, check_targets
from pyrobnn.training.state import generators

__all__ = ["Batches", "all_data"]


class Batches:
    """Arguments of the model for each step.

    Args:
        model: The model.
        data: A loader, iterated again and again, or a tuple: the model's arguments, the same at each step.
        device: Where batches are moved; None leaves them where they are.
        reader: How to read what the loader yields (:meth:`~pyrobnn.Batch.read`).

    Attributes:
        epoch: Passes over the loader that are complete.
        is_first: Whether the batch given last is of the first pass.
    """

    def __init__(
        self, model: Any, data: Any, device: torch.device | str | None = None, reader: Reader | None = None
    ) -> None:
        self.model, self.data, self.device, self.reader = model, data, device, reader
        self.epoch = self.index = self.rows = 0
        self.form: Form | None = None
        self._iterator: Iterator[Any] | None = None
        self._random: dict[str, Any] | None = None
        self._pending: tuple[Any, ...] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the first pass over the loader."""
        return self.epoch == 0 and not (self._is_one and self.index > 1)

    @property
    def _is_one(self) -> bool:
        return isinstance(self.data, tuple)

    def check(self) -> None:
        """Checks that need no batch.

        Raises:
            TypeError: If the data are an iterator, which is used up after one pass.
            ValueError: If their number is not the model's.
        """
        if not self._is_one:
            check_loader(self.model, self.data, 2, self.reader, "data")

    def peek(self) -> tuple[Any, ...]:
        """The next batch, without advancing."""
        if self._pending is None:
            self._pending = self._fetch()
        return self._pending

    def next(self) -> tuple[Any, ...]:
        """The next batch.

        Raises:
            TypeError: If a batch is of no known form.
            ValueError: If the loader is empty, or a batch holds what the model cannot take.
        """
        args, self._pending = self.peek(), None
        self.index += 1
        return args

    def _fetch(self) -> tuple[Any, ...]:
        if self._is_one:
            args = to_device(self.data, self.device)
            if self.index == 0:
                _check_arguments(self.model, args)
                self.form = form_of(Batch(args, {}, args[:-1], args[-1:], 0))
            self.data, self.device = args, None
            return args
        if self._iterator is None:
            self._begin()
        assert self._iterator is not None
        try:
            raw = next(self._iterator)
        except StopIteration:
            self._end()
            return self._fetch()
        batch = _read(raw, self.device, self.reader)
        if not batch.rows:
            raise ValueError(f"data: batch {self.index} has no rows, which cannot stand for the data; leave it out.")
        batch.check(self.index)
        if self.epoch == 0:
            check_targets(self.model, batch)
            self.rows += batch.rows
            self.form = common_form(self.form, form_of(batch))
        return batch.args

    def _begin(self) -> None:
        self._random = random_state.read_all(generators(self.data))
        self._iterator = iter(self.data)

    def _end(self) -> None:
        if self.index == 0:
            raise ValueError("data: the loader yielded no batch; the data set is empty or drop_last left nothing.")
        if self.epoch == 0:
            check_counted_rows(declared_num_data(self.model), self.data, self.rows, self.reader)
        self.epoch, self.index, self._iterator = self.epoch + 1, 0, None

    # ------------------------------------------------------------------------------------ positions in the stream

    def read(self) -> dict[str, Any]:
        """The position, and the random state at the start of the pass."""
        assert self._pending is None, "read() is called between batches only"
        return {"epoch": self.epoch, "index": self.index, "rows": self.rows, "form": self.form, "random": self._random}

    def check_form(self, position: dict[str, Any]) -> None:
        """Compares the present first batch with those of a position of :meth:`read`.

        Raises:
            ValueError: If they were of another form.
        """
        check_form("data", position["form"], self.form, sizes=self._is_one or position["epoch"] > 0)

    def write(self, position: dict[str, Any]) -> None:
        """Restores a position of :meth:`read` by iterating the loader up to it; changes the random state."""
        self.epoch, self.index, self.rows = position["epoch"], position["index"], position["rows"]
        self.form = position["form"]
        self._pending, self._iterator, self._random = None, None, position["random"]
        if self._is_one or self._random is None or self.index == 0:
            return
        random_state.write_all(self._random, generators(self.data))
        self._iterator = iter(self.data)
        for _ in range(self.index):
            next(self._iterator)


def all_data(
    model: Any, data: Any, device: torch.device | str | None = None, reader: Reader | None = None
) -> tuple[Any, ...]:
    """All data as the model's arguments: a tuple as it is, a loader's batches joined.

    Raises:
        TypeError: If a batch is of no known form, or batches are not made alike.
        ValueError: If there is no batch, batches cannot be joined, or the rows are not the model's ``num_data``.
    """
    if isinstance(data, tuple):
        args = to_device(data, device)
        _check_arguments(model, args)
        return args
    check_loader(model, data, 1, reader, "data")
    check_whole_pass(data, "a kernel of all data", "data")
    batches = [_read(raw, device, reader) for raw in data]
    if not batches:
        raise ValueError("data: the loader yielded no batch.")
    for index, batch in enumerate(batches):
        batch.check(index)
        check_targets(model, batch)
    joined = Batch.join(batches) if len(batches) > 1 else batches[0]
    check_counted_rows(declared_num_data(model), None, joined.rows, None)  # which a pass must not leave out
    return joined.args


def _read(raw: Any, device: torch.device | str | None, reader: Reader | None) -> Batch:
    batch = Batch.read(raw, device, reader, argument="data")
    if batch.kwargs:
        raise TypeError(
            "batch: sampling passes positional arguments only, but the function returned a Batch with kwargs; put them "
            "in args."
        )
    return batch


def _check_arguments(model: Any, args: tuple[Any, ...]) -> None:
    """The checks of a loader's batches, for arguments that hold all data."""
    if isinstance(model, SupervisedModel) and len(args) in (2, 3):
        batch = Batch.of(*args, argument="data")
        batch.check(0)
        check_targets(model, batch)
        expected, rows = model.num_data, batch.rows
    else:
        check_inputs(args[:1], 0)
        expected, rows = _stated_and_given(model, args)
    if rows != expected:
        raise ValueError(
            f"num_data: the model was built for {expected} data, but data has {rows} rows, each of which "
            f"would count {expected / rows:.4g} times; build the model with num_data={rows}, or set "
            "model.num_data."
        )


def _stated_and_given(model: Any, args: tuple[Any, ...]) -> tuple[int, int]:
    """The number of data that a model of one's own states, and the rows it is given; equal ones if it states none.

    It states them by ``num_data``, or by an observed site in a plate of more data than the rows that are given. A model
    that takes part of the rows itself is right.
    """
    tensors = [leaf for leaf in leaves(args) if isinstance(leaf, Tensor) and leaf.dim()]
    given = {len(tensor) for tensor in tensors}
    if len(given) != 1 or not (rows := given.pop()):
        return 1, 1
    if (declared := declared_num_data(model)) is not None:
        return declared, rows
    module = model if isinstance(model, nn.Module) else nn.Module()
    with (
        torch.no_grad(),
        random_state.preserved(tensors[0].device),
        validation_enabled(False),
        frozen_buffers(module),
        SubstituteMessenger({}) as run,
    ):
        model(*args)
    frames = [frame for message in run.observed for frame in message["cond_indep_stack"]]
    return next((f.full_size for f in frames if f.size == rows and (f.full_size or rows) != rows), rows), rows
