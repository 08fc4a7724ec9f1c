"""Running a network under posterior draws: one by one, written in place, or several at once by vmap."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.attention import attention_under_vmap
from pyrobnn.core.first_line import first_line
from pyrobnn.core.pyro_compat import strictly_vectorized
from pyrobnn.core.trees import leaves, refuse_arrays, to_device
from pyrobnn.model.bayesianize import BayesianModule, evaluating, frozen_buffers
from pyrobnn.model.declarations import declared_likelihood
from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel, run_network
from pyrobnn.prediction.compiled import CompiledNetwork
from pyrobnn.prediction.execution import Execution
from pyrobnn.prediction.rows import (
    Part,
    RowCutter,
    check_outputs,
    has_one_row,
    join_outputs,
    refuse_squeezed,
)
from pyrobnn.prediction.vectorization import Method, Vectorization

__all__ = ["Runner", "inputs_on", "model_outputs"]

Summarize = Callable[[Tensor], dict[str, Tensor]]

_STACKED_BYTES = 2**20  # small predictions are reduced several draws at a time, which saves calls


class Runner:
    """Pushes inputs through a model under draws of its sites.

    Args:
        model: A Pyro model that returns the network's outputs when called with inputs only.
        likelihood: The likelihood; the model's if None.
        method: ``"loop"``, ``"vmap"`` or ``"auto"``.
        max_bytes: Budget for draws and activations.
        batch_size: Rows that the network sees at a time (:class:`~pyrobnn.prediction.rows.RowCutter`).
        execution: Precision and layout of the network's runs; None for the network's own.

    Raises:
        TypeError: If the model has no likelihood and none is given.
        ValueError: If ``method`` is unknown or cannot run this network, or a number is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood | None,
        method: Method,
        max_bytes: int,
        batch_size: int | None = None,
        execution: Execution | None = None,
    ) -> None:
        own = likelihood if likelihood is not None else declared_likelihood(model)
        if not isinstance(own, Likelihood):
            raise TypeError(
                f"likelihood: {type(model).__name__} has no likelihood, which predictions "
                "need; pass likelihood=pyrobnn.likelihoods.Categorical(), say."
            )
        if max_bytes < 1:
            raise ValueError(f"max_bytes: expected a positive number of bytes, got {max_bytes}.")
        self.model, self.likelihood = model, own
        self.device = next(model.parameters(), torch.empty(0)).device
        self.execution = Execution() if execution is None else execution
        self.vectorization = Vectorization(model, self.execution.method(method), self.device)
        self._compiled: CompiledNetwork | None = None
        self.draws_bytes = max_bytes // 2
        self.activation_bytes = max_bytes // 4
        self.cutter = RowCutter(model, batch_size, self.activation_bytes, even=not self.execution.compile)
        self._checked_shape = self._checked_one_row = False

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Evaluation mode and untouched buffers while the block lasts."""
        with evaluating(self.model), frozen_buffers(self.model):
            yield

    def summaries(self, draws: dict[str, Tensor], x: Any, summarize: Summarize) -> Iterator[dict[str, Tensor]]:
        """``summarize(outputs)`` under each of the draws ``{site: [k, …]}``, in chunks ``{name: [k', N, …]}`` of draws.

        Draws that have buffers (:class:`~pyrobnn.model.draws.Draws`) are run with these.
        """
        x, own = self.execution.laid_out(inputs_on(x, self.device)), Draws.of(draws).buffers
        draws = Draws(to_device(dict(draws), self.device), to_device(own, self.device))
        first, done = draws.at(0), 0
        run = functools.partial(self.outputs, first)
        parts = self.cutter.parts(x, run)
        if self.vectorization.serves(draws, parts[0].inputs, run):
            try:
                for summary in self._vmapped(draws, parts, run, summarize):
                    yield summary
                    done += len(next(iter(summary.values())))
                return
            except NotVectorizedError:
                if self.vectorization.is_requested:
                    raise
                self.vectorization.fail(parts[0].inputs)
        each = draws.each(done)
        while pending := self._looped(each, parts, summarize):
            yield {name: torch.stack([summary[name] for summary in pending]) for name in pending[0]}

    def outputs(self, draw: Draws, x: Any) -> Tensor:
        """The outputs under one draw, for a look at what the network does."""
        with installed_buffers(self.model, draw.buffers), SubstituteMessenger(draw, direct=True):
            return model_outputs(self.model, x)

    def _looped(self, draws: Iterator[Draws], parts: list[Part], summarize: Summarize) -> list[dict[str, Tensor]]:
        """Summaries of the next draws, one or as many as are reduced at a time; none if there are no more."""
        found: list[dict[str, Tensor]] = []
        with self._running() as run:
            for draw in draws:
                own = installed_buffers(self.model, draw.buffers) if draw.buffers else contextlib.nullcontext()
                with own, self.execution.casting(self.device):
                    joined = join_outputs(run(draw, parts), parts)
                self._check(draw, parts, joined)
                with SubstituteMessenger(draw):
                    found.append(summarize(joined))
                if len(found) * sum(tensor.nbytes for tensor in found[0].values()) > _STACKED_BYTES:
                    break
        return found

    @contextlib.contextmanager
    def _running(self) -> Iterator[Callable[[Draws, list[Part]], list[Tensor]]]:
        """A function from a draw and parts of the inputs to their outputs, for the block."""
        model = self.model
        if not isinstance(model, SupervisedModel) or not isinstance(net := model.net, BayesianModule):

            def substituted(draw: Draws, parts: list[Part]) -> list[Tensor]:
                with SubstituteMessenger(draw):
                    return [model_outputs(model, part.inputs) for part in parts]

            yield substituted
            return
        with net.writing() as write:
            names: dict[str, str] | None = None

            def written(draw: Draws, parts: list[Part]) -> list[Tensor]:
                nonlocal names
                if names := names or net.names_in(draw):
                    weights = {site: draw[name] for site, name in names.items()}
                else:
                    with SubstituteMessenger(draw, direct=True):
                        weights = net.sample_weights()
                plain = write(weights)
                run: Callable[[Any], Any] = functools.partial(run_network, plain)
                if self.execution.compile:
                    run = self._compiled = self._compiled or CompiledNetwork(plain)
                return [model.select(run(part.inputs)) for part in parts]

            yield written

    def _check(self, draw: Draws, parts: list[Part], outputs: Tensor) -> None:
        """Refuses, at first, outputs under a draw that lost the only row, or are not what the likelihood takes."""
        if not self._checked_one_row and has_one_row(parts):
            refuse_squeezed(parts[0].inputs, outputs, functools.partial(self.outputs, draw))
            self._checked_one_row = True
        if not self._checked_shape:
            with SubstituteMessenger(draw):
                self.likelihood.target_shape(outputs)
            self._checked_shape = True

    def _vmapped(
        self, draws: Draws, parts: list[Part], run: Callable[[Any], Tensor], summarize: Summarize
    ) -> Iterator[dict[str, Tensor]]:
        def one(draw: dict[str, Tensor], buffers: dict[str, Tensor], part: Part) -> tuple[Tensor, dict[str, Tensor]]:
            with installed_buffers(self.model, buffers), SubstituteMessenger(draw, direct=True):
                outputs = model_outputs(self.model, part.inputs)
                check_outputs(outputs, part.rows)
                return outputs, summarize(outputs)

        # What the caller did not ask for must not be slow, and has no errors of its own.
        requested = self.vectorization.is_requested
        refused: type[Exception] = RuntimeError if requested else Exception
        strict = not requested and self.device.type == "cpu"
        count = len(next(iter(draws.values())))
        size = max(1, min(count, self.activation_bytes // self.vectorization.nbytes(parts[0].inputs, run)))
        for start in range(0, count, size):
            chunk = draws.at(slice(start, start + size)) if size < count else draws
            # The inputs are not mapped; a function of the draws alone takes them whatever they are.
            runs = [torch.func.vmap(functools.partial(one, part=part), randomness="different") for part in parts]
            try:
                with attention_under_vmap(self.device), strictly_vectorized(strict):
                    pieces = [vectorized(dict(chunk), chunk.buffers) for vectorized in runs]
            except refused as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise NotVectorizedError(
                    f"method: torch cannot vmap this network ({first_line(error)}); use method='loop'."
                ) from error
            self._check(draws.at(0), parts, pieces[0][0][0])
            yield {name: torch.cat([summary[name] for _, summary in pieces], 1) for name in pieces[0][1]}


class NotVectorizedError(ValueError):
    """A network does something that torch cannot run under vmap."""


def model_outputs(model: nn.Module, x: Any) -> Tensor:
    """The network's outputs, under the draw that is substituted by the active handlers.

    A model of one's own is called as ``model(x)``, whatever ``x`` is, as ``fit`` calls ``model(x, y)``.

    Raises:
        TypeError: If the model returns no tensor.
    """
    outputs = model.predictive(x) if isinstance(model, SupervisedModel) else model(x)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model: called with inputs it returned a {type(outputs).__name__}; predict needs a model that returns the "
            "network's outputs as one tensor."
        )
    return outputs


def inputs_on(x: Any, device: torch.device) -> Any:
    """Inputs on ``device``.

    Raises:
        TypeError: If a NumPy array or text is among them.
    """
    refuse_arrays(x, "data: the inputs")
    for leaf in leaves(x):
        if isinstance(leaf, str | bytes):
            raise TypeError(f"data: expected tensors as inputs, got {type(leaf).__name__}; use torch.as_tensor.")
    return to_device(x, device)
