r"""Training runs whose steps join several batches: those of several processes, and of several in a row.

With :math:`b_i` rows in batch i of a step, :math:`b = \sum_i b_i`, and the objective of that batch,
:math:`L_i = \frac{N}{b_i} \sum_j \log p(y_j \mid x_j, w) - \mathrm{KL}`, the gradient of a step is

.. math::  \sum_i \frac{b_i}{b} \nabla L_i,

that of the union of the batches, however uneven they are. Draws of the weights are the same in all processes, or each
process has its own; both are unbiased, and the latter average R draws in each step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.batches import Batch, num_batches
from pyrobnn.core.ranks import Ranks, mixed_seed
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.model.num_data import check_counted_rows
from pyrobnn.objectives import Parts
from pyrobnn.objectives.terms import Term
from pyrobnn.training.gradient_step import moved_parameters, take_step
from pyrobnn.training.history import Totals
from pyrobnn.training.run import Run
from pyrobnn.training.shares import Shares
from pyrobnn.training.state import Tensors
from pyrobnn.training.validation import log_predictive_sum

__all__ = ["DrawsOfRanks", "JointRun"]

DrawsOfRanks = Literal["own_draws", "same_draws"] | None
_DRAWS = 2  # distinguishes the seeds of draws from those of orders
_END = object()


@dataclass
class JointRun(Run):
    """A run on several processes, or with several batches in a step.

    Attributes:
        ranks: The processes.
        draws: Whether processes share their draws; None: there is one process, seeded as any other run.
        accumulate: Batches of each process in a step.
        seed: From which all random numbers of the run follow, if ``draws`` is not None.
        autocast: Surrounds each evaluation of the objective.
        shares: This process's data.
    """

    ranks: Ranks = field(default_factory=lambda: Ranks(torch.device("cpu")))
    draws: DrawsOfRanks = None
    accumulate: int = 1
    seed: int = 0
    autocast: Any = contextlib.nullcontext
    shares: Shares | None = None

    def check(self) -> None:
        """Refuses what cannot be joined.

        Raises:
            TypeError: If the objective remembers earlier steps, or there are players.
            ValueError: If the model declares no ``num_data``.
        """
        count = declared_num_data(self.model)
        what = "data_parallel" if self.draws is not None else "accumulate"
        if count is None:
            raise ValueError(
                f"{what}: {type(self.model).__name__} does not declare num_data, by which batches of different "
                "sizes are weighed; set it to the number of training data."
            )
        if self.players:
            raise TypeError(f"{what}: players take their steps on every batch by itself; leave one of the two out.")
        remembering = [term.name for term in self.elbo.terms if type(term).state is not Term.state]
        if remembering and self.draws is not None:
            raise TypeError(
                f"data_parallel: the term {remembering[0]!r} remembers earlier steps, of which each process sees its "
                "share only; train with it in one process."
            )

    def prepare(self) -> None:
        """Copies the first process's tensors to the others, and cuts the data.

        Raises:
            ValueError: If the processes have different models or data.
        """
        if self.draws is None:
            return
        count = declared_num_data(self.model)
        assert count is not None
        tensors = [*self.guide.state_dict(keep_vars=True).values(), *self.model.state_dict(keep_vars=True).values()]
        self.ranks.agree(
            "model: it, or its guide, or num_data, is another one in each process; build them alike.",
            value=([(tuple(t.shape), t.dtype) for t in tensors], count),
        )
        self.ranks.copy_from_first([tensor.detach() for tensor in tensors])
        self.shares = Shares(self.loader, self.ranks, count, self.reader)
        self.loader = self.shares.loader
        self.seed = self.ranks.first(lambda: self.seed)

    # ------------------------------------------------------------------------------------------------------- steps

    @property
    def stated_rows(self) -> tuple[int, ...]:
        """The numbers of data that the loaders of all processes are consistent with."""
        return super().stated_rows if self.shares is None else self.shares.rows

    @property
    def batches_per_epoch(self) -> int | None:
        """Steps of one pass: those of the process that has most."""
        lengths = self.ranks.gather(num_batches(self.loader))
        return None if None in lengths else -(-max(lengths) // self.accumulate)

    def begin_epoch(self) -> None:
        """Seeds the epoch, so that it depends on its number alone."""
        epoch = self.history.epochs
        if self.shares is not None:
            self.shares.begin(self.seed, epoch)
        if self.draws == "own_draws":
            random_state.seed(mixed_seed(self.seed, epoch, _DRAWS, self.ranks.rank), self._device)

    def _steps(self, first: bool, good: Tensors) -> Iterator[tuple[int, Batch, Parts]]:
        """Steps until no process has a batch left."""
        iterator, index, is_over = iter(self.loader), -1, False
        parameters = moved_parameters(self.model, self.guide, self.optimizer)
        start = self.history.steps
        waiting = self._first_batch(iterator) if first and self.draws is not None else []
        while True:
            taken: list[tuple[int, Batch, Parts]] = []
            failure: Exception | None = None
            if self.draws == "same_draws":
                step = self.history.steps - start
                random_state.seed(mixed_seed(self.seed, self.history.epochs, _DRAWS, step), self._device)
            before = self.elbo.num_steps
            for parameter in parameters:
                parameter.grad = None
            try:
                while len(taken) < self.accumulate and not is_over:
                    batch = waiting.pop() if waiting else self._next(iterator, index + 1, first)
                    if batch is None:
                        is_over = True
                        break
                    index += 1
                    taken.append((index, batch, self._evaluate(batch, index, good)))
                    self.elbo.num_steps = before
            except Exception as error:
                failure = error
            rows, used = self._of_all(sum(batch.rows for _, batch, _ in taken), failure, index, parameters)
            if not rows:
                return
            self._join(used, rows)
            take_step(self.optimizer, parameters, self.clip_norm)
            self.elbo.num_steps = before + 1
            self.history.steps += 1
            self.rates.after_step()
            yield from taken

    @property
    def _device(self) -> torch.device:
        return next(self.guide.parameters()).device

    def _next(self, iterator: Iterator[Any], index: int, first: bool) -> Batch | None:
        raw = next(iterator, _END)
        return None if raw is _END else self._read(raw, index, first)

    def _first_batch(self, iterator: Iterator[Any]) -> list[Batch]:
        """The first batch; what it initializes in the likelihood is that of the first process."""
        with self.ranks.together("at its first batch"):
            batch = self._next(iterator, 0, True)
        self.ranks.copy_from_first([tensor.detach() for tensor in self.model.state_dict(keep_vars=True).values()])
        return [] if batch is None else [batch]

    def _evaluate(self, batch: Batch, index: int, good: Tensors) -> Parts:
        """Adds the gradients of a batch's objective per datum, times its rows."""
        count = declared_num_data(self.model)
        assert count is not None
        with self._explained(batch, index, good), self.autocast():
            parts = self.gradients.backward(self.model, self.guide, batch.args, batch.kwargs, scale=batch.rows / count)
        self.previous = batch
        return parts

    def _of_all(
        self, rows: int, failure: Exception | None, index: int, parameters: list[nn.Parameter]
    ) -> tuple[float, list[nn.Parameter]]:
        """Rows of the step in all processes, and the parameters that have a gradient in one of them.

        Raises this process's error, or that another one failed.
        """
        has = [float(parameter.grad is not None) for parameter in parameters]
        try:
            total, failed, *counts = self.ranks.sum([float(rows), float(failure is not None), *has])
            if failed:
                self.ranks.explain(failure, f"in epoch {self.history.epochs + 1}, at step {index + 1} of it")
        except Exception as error:
            if failure is None:
                raise
            raise failure from error
        if failure is not None:
            raise failure
        return total, [parameter for parameter, count in zip(parameters, counts, strict=True) if count]

    @torch.no_grad()
    def _join(self, parameters: list[nn.Parameter], rows: float) -> None:
        """Makes each gradient the sum over the processes, divided by the rows of all of them."""
        gradients: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad.mul_(1.0 / rows))
        self.ranks.sum_tensors(gradients)

    # ------------------------------------------------------------------------------------------- ends of an epoch

    def _united(self, totals: Totals) -> Totals:
        """Sums over the processes; running statistics become their means over the processes."""
        if self.draws is None:
            return totals
        found = self.ranks.gather(totals)
        self._average_buffers()
        united = next((one for one in found if one.rows), totals)
        names = united.values
        values = {name: sum(one.values.get(name, 0.0) for one in found) for name in names}
        return Totals(values, sum(one.rows for one in found), united.temperature, united.divergence_name)

    @torch.no_grad()
    def _average_buffers(self) -> None:
        """Floating-point buffers become their mean over the processes where they differ, counters the largest."""
        buffers = [buffer for module in (self.model, self.guide) for _, buffer in module.named_buffers()]
        if not buffers or self.ranks.size == 1:
            return
        marks = self.ranks.gather([float(buffer.double().sum()) for buffer in buffers])
        differing = [buffer for buffer, *each in zip(buffers, *marks, strict=True) if len(set(each)) > 1]
        floating = [buffer for buffer in differing if buffer.is_floating_point()]
        for buffer in floating:
            buffer.mul_(1.0 / self.ranks.size)
        self.ranks.sum_tensors(floating)
        for buffer in differing:
            if not buffer.is_floating_point():
                own = buffer.cpu()
                buffer.copy_(torch.stack(self.ranks.gather(own)).amax(0))

    def _check_rows(self, rows: int) -> None:
        if self.shares is None:
            super()._check_rows(rows)
        elif not self.shares.rows:
            check_counted_rows(declared_num_data(self.model), None, rows, self.reader)

    def _log_predictive(self, batches: Iterable[Any]) -> float:
        """Each process scores every R-th batch, under the same draws."""
        if self.draws is None:
            return super()._log_predictive(batches)
        total = rows = 0.0
        with self.ranks.together("in validation"):
            own = (raw for index, raw in enumerate(batches) if index % self.ranks.size == self.ranks.rank)
            total, rows = log_predictive_sum(self.model, self.guide, own, self.device, reader=self.reader)
        total, rows = self.ranks.sum([total, rows])
        if not rows:
            raise ValueError("validation: it yielded no batch.")
        return total / rows

    # ------------------------------------------------------------------------------------------------- all as one

    def agreed(self, wish: bool) -> bool:
        """Whether a process wishes something."""
        return bool(self.ranks.sum([float(wish)])[0])

    def read_random(self) -> dict[str, Any]:
        """The seed, from which all epochs follow."""
        return {} if self.draws is None else {"data_parallel": self.seed}

    def write_random(self, state: dict[str, Any]) -> None:
        """Goes on with a run's seed, if it has one."""
        self.seed = state.get("data_parallel", self.seed)
