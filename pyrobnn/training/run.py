"""One training run: its epochs, its steps, and what happens when the objective is not finite."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import torch
from pyro.optim import PyroOptim
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrobnn.core import random_state
from pyrobnn.core.batch_form import Form, check_form, common_form, form_of
from pyrobnn.core.batches import Batch, Reader, num_batches
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.ranks import Ranks
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.model.likelihoods.learned import initialize_likelihood
from pyrobnn.model.num_data import check_counted_rows, stated_rows
from pyrobnn.model.shared import shared_digest
from pyrobnn.objectives import NonFiniteLossError, Objective, Parts
from pyrobnn.objectives.compiled import CompiledObjective
from pyrobnn.training.checks import check_targets
from pyrobnn.training.collapse import CollapseWatch
from pyrobnn.training.gradient_step import train_step
from pyrobnn.training.history import History, Totals
from pyrobnn.training.input_scale import InputScale
from pyrobnn.training.players import Player
from pyrobnn.training.schedule import LearningRates
from pyrobnn.training.state import Tensors, became_non_finite, read_tensors, write_tensors
from pyrobnn.training.trackers.base import TrackerCalls
from pyrobnn.training.validation import log_predictive

__all__ = ["Run"]


@dataclass
class Run:
    """One call of :func:`pyrobnn.fit`.

    Attributes:
        epochs: Number of epochs in all.
        best: Parameters and buffers after the best epoch (by validation), and its value.
        epochs_since_best: Epochs after that one.
        previous: The last batch that a step was taken on.
        reader: How to read what loaders yield.
        players: Further objectives with optimizers of their own.
        rates: The learning-rate schedule.
        scale: What the first epoch shows of the inputs' scale.
        watch: Comparison with a constant predictor.
        calls: Calls of the trackers.
        ranks: The processes that train together; None: this one by itself.
        compiled: The objective with compiled steps; None: they run uncompiled.
    """

    model: nn.Module
    guide: Guide
    elbo: Objective
    optimizer: Optimizer | PyroOptim
    rates: LearningRates
    loader: Iterable[Any]
    validation: Iterable[Any] | None = None
    clip_norm: float | None = None
    device: torch.device | str | None = None
    history: History = field(default_factory=History)
    epochs: int = 1
    best: Tensors | None = None
    best_value: float = -float("inf")
    epochs_since_best: int = 0
    previous: Batch | None = None
    reader: Reader | None = None
    players: Sequence[Player] = ()
    form: Form | None = None
    scale: InputScale = field(default_factory=InputScale)
    watch: CollapseWatch = field(default_factory=CollapseWatch)
    calls: TrackerCalls = field(default_factory=lambda: TrackerCalls((), None))
    ranks: Ranks | None = None
    compiled: CompiledObjective | None = None

    @cached_property
    def shared_digest(self) -> str | None:
        """That of the frozen parameters that the model shares with another network; they do not change in a run."""
        return shared_digest(self.model)

    @property
    def gradients(self) -> Objective | CompiledObjective:
        """What computes the gradients of a step."""
        return self.elbo if self.compiled is None else self.compiled

    @property
    def torch_optimizer(self) -> Optimizer:
        """The optimizer, which must be one of torch."""
        assert isinstance(self.optimizer, Optimizer)
        return self.optimizer

    @property
    def scheduler(self) -> LRScheduler | None:
        """torch's schedule, if there is one."""
        return self.rates.scheduler

    @property
    def is_finished(self) -> bool:
        """Whether there are all epochs, or something stopped the run before."""
        return self.history.epochs >= self.epochs or bool(self.history.stopped)

    def epoch(self) -> None:
        """One pass over the loader; the history is written when all of it is done."""
        started, first = time.perf_counter(), self.history.epochs == 0
        good = read_tensors(self.model, self.guide, only_trained=True)
        self.elbo.step(self.model, self.guide)[0].restart(self._remaining())
        totals, batch, index = Totals(), None, -1
        self.begin_epoch()
        for index, batch, parts in self._steps(first, good):
            values = parts.per_datum() | self._play(batch, index, good)
            self.calls.after_step(values, self.history.steps)
            totals.add(values, batch.rows)
            totals.temperature, totals.divergence_name = parts.temperature, parts.divergence_name
        totals = self._united(totals)
        if totals.rows == 0:
            raise ValueError("loader: it yielded no batch; the data set is empty or drop_last left nothing.")
        if first:
            self._check_rows(totals.rows)
        if names := became_non_finite(self.model, self.guide, good):
            self._fail(
                f"the last step made the parameters non-finite ({names[0]}); lower the learning rate.",
                index,
                good,
            )
        entries = {name: total / totals.rows for name, total in totals.values.items()}
        self.history.divergence_name = totals.divergence_name
        if totals.temperature != 1.0 or "temperature" in self.history.terms:
            entries["temperature"] = totals.temperature
        if isinstance(self.optimizer, Optimizer):
            entries["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        if self.validation is not None:
            entries["validation"] = self._validate(self.validation)
        self.rates.after_epoch(entries.get("validation", entries["elbo"]))
        self.history.append(entries | {"seconds": time.perf_counter() - started})
        if batch is not None:
            self.scale.after_epoch(self.model, batch)
            value, steps = entries["log_likelihood"], self.history.steps
            self.watch.after_epoch(self.model, batch, value, self.history.epochs, self.epochs, steps)

    # ------------------------------------------------------- what runs that join several batches do in another way

    @property
    def stated_rows(self) -> tuple[int, ...]:
        """The numbers of data that the loader is consistent with, as far as it says."""
        return stated_rows(self.loader) if self.reader is None else ()

    @property
    def batches_per_epoch(self) -> int | None:
        """Steps of one pass over the loader; None if it has no length."""
        return num_batches(self.loader)

    def begin_epoch(self) -> None:
        """Called before the first batch of an epoch is read."""

    def _steps(self, first: bool, good: Tensors) -> Iterator[tuple[int, Batch, Parts]]:
        """The steps of one epoch: number and content of the batch, parts of the objective before the step."""
        for index, raw in enumerate(self.loader):
            batch = self._read(raw, index, first)
            with self._explained(batch, index, good):
                parts = train_step(
                    self.model, self.guide, self.gradients, self.optimizer, batch.args, self.clip_norm, batch.kwargs
                )
            self.history.steps += 1
            self.rates.after_step()
            self.previous = batch
            yield index, batch, parts

    def _united(self, totals: Totals) -> Totals:
        """The sums of all processes."""
        return totals

    def _check_rows(self, rows: int) -> None:
        """Compares the rows of the first epoch with N."""
        check_counted_rows(declared_num_data(self.model), self.loader, rows, self.reader)

    def _log_predictive(self, batches: Iterable[Any]) -> float:
        return log_predictive(self.model, self.guide, batches, self.device, reader=self.reader)

    def agreed(self, wish: bool) -> bool:
        """Whether a process of the run wishes something: to stop, say."""
        return wish

    def read_random(self) -> dict[str, Any]:
        """What a checkpoint keeps of a random state of the run's own."""
        return {}

    def write_random(self, state: dict[str, Any]) -> None:
        """Goes back to what :meth:`read_random` returned, and what else is in ``state``."""

    # ------------------------------------------------------------------------------------------------- one step

    def _read(self, raw: Any, index: int, first: bool) -> Batch:
        """The batch in what the loader yielded, checked."""
        batch = Batch.read(raw, self.device, self.reader)
        if not batch.rows:
            raise ValueError(f"loader: batch {index} has no rows, which cannot stand for the data; leave it out.")
        batch.check(index)
        if first:
            check_targets(self.model, batch)
            initialize_likelihood(self.model, batch.targets)
            self.form = common_form(self.form, form_of(batch))
        elif index == 0:
            check_form("loader", self.form, form_of(batch))
        self.scale.add(batch)
        self.watch.add(self.model, batch)
        return batch

    @contextlib.contextmanager
    def _explained(self, batch: Batch, index: int, good: Tensors) -> Iterator[None]:
        """Ends the run, with model and guide in a good state, if the objective of the batch is not finite."""
        try:
            yield
        except NonFiniteLossError as error:
            self._fail(error, index, good)
        except ValueError as error:
            if (hidden := self._hidden_failure(batch)) is None:
                raise
            self._fail(hidden, index, good, cause=error)

    def _play(self, batch: Batch, index: int, good: Tensors) -> dict[str, float]:
        """The steps of the players on a batch; returns their losses per datum."""
        found = {}
        for player in self.players:
            try:
                parts = player.play(self.model, self.guide, batch, self.clip_norm)
            except NonFiniteLossError as error:
                self._fail(f"player {player.name!r}: {error}", index, good, cause=error)
            found[f"{player.name}.loss"] = float(parts.loss) / parts.num_data
        return found

    def _remaining(self) -> int | None:
        """How many training steps are to come, None if the loader has no length."""
        batches = self.batches_per_epoch
        return None if batches is None else (self.epochs - self.history.epochs) * batches

    def _hidden_failure(self, batch: Batch) -> NonFiniteLossError | None:
        """Pyro's validation refuses NaN in a distribution before the objective can be found non-finite."""
        try:
            with validation_enabled(False), frozen_buffers(self.model):
                self.elbo.backward(self.model, self.guide, batch.args, batch.kwargs)
        except NonFiniteLossError as error:
            return error
        except (ValueError, IndexError, RuntimeError):
            return None
        return None

    def _fail(self, error: object, index: int, good: Tensors, cause: Exception | None = None) -> NoReturn:
        """Raises; keeps the present state if it is finite on the last batch, else restores the start of the epoch."""
        where = "the state just before this step was kept"
        if became_non_finite(self.model, self.guide, good) or not self._is_good():
            write_tensors(self.model, self.guide, good)
            where = "the state at the start of this epoch was restored"
        failure = NonFiniteLossError(f"epoch {self.history.epochs + 1}, step {index + 1} of it: {error} ({where})")
        failure.history = self.history  # type: ignore[attr-defined]
        raise failure from (cause or (error if isinstance(error, Exception) else None))

    def _is_good(self) -> bool:
        """Whether the objective is still finite on the last batch that a step was taken on."""
        batch = self.previous
        if batch is None:
            return True
        with validation_enabled(False), random_state.preserved(batch.device):
            try:
                return math.isfinite(self.elbo.loss(self.model, self.guide, *batch.args, **batch.kwargs))
            except NonFiniteLossError:
                return False

    def _validate(self, batches: Iterable[Any]) -> float:
        value = self._log_predictive(batches)
        self.epochs_since_best += 1
        if value > self.best_value:
            self.best, self.best_value, self.epochs_since_best = (
                read_tensors(self.model, self.guide, only_trained=True),
                value,
                0,
            )
        return value
