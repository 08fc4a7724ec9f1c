"""Running a network under posterior draws: one by one, written in place, or several at once by vmap."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.attention import attention_under_vmap
from pyrobnn.core.trees import leaves, refuse_arrays, to_device
from pyrobnn.model.bayesianize import BayesianModule, evaluating, frozen_buffers
from pyrobnn.model.declarations import declared_likelihood, latent_sampler
from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel, run_network
from pyrobnn.prediction.rows import Part, RowCutter, check_outputs, has_one_row, join_outputs, refuse_squeezed

__all__ = ["Method", "Runner", "inputs_on", "model_outputs"]

Method = Literal["auto", "loop", "vmap"]
Summarize = Callable[[Tensor], dict[str, Tensor]]

_STACKED_BYTES = 2**20  # small predictions are reduced several draws at a time, which saves calls


class Runner:
    """Pushes inputs through a model under given draws.

    Args:
        model: A Pyro model that returns the network's outputs when called with inputs only.
        likelihood: The likelihood; the model's if None.
        method: ``"loop"``, ``"vmap"`` or ``"auto"``.
        max_bytes: Budget for draws and activations.
        batch_size: Rows that the network sees at a time (:class:`~pyrobnn.prediction.rows.RowCutter`).

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
    ) -> None:
        own = likelihood if likelihood is not None else declared_likelihood(model)
        if not isinstance(own, Likelihood):
            raise TypeError(
                f"likelihood: {type(model).__name__} has no likelihood, which predictions "
                "need; pass likelihood=pyrobnn.likelihoods.Categorical(), say."
            )
        if method not in ("auto", "loop", "vmap"):
            raise ValueError(f"method: expected 'auto', 'loop' or 'vmap', got {method!r}.")
        if max_bytes < 1:
            raise ValueError(f"max_bytes: expected a positive number of bytes, got {max_bytes}.")
        self.model, self.likelihood = model, own
        first = next(model.parameters(), torch.empty(0))
        self.device = first.device
        recurrent = [type(m).__name__ for m in model.modules() if isinstance(m, nn.RNNBase)]
        if method == "vmap" and recurrent:
            raise ValueError(f"method: torch cannot vmap {recurrent[0]} layers; use 'loop', or 'auto'.")
        fastest = "vmap" if self.device.type == "cuda" and not recurrent else "loop"
        self.method = fastest if method == "auto" else method
        self.can_fall_back = method == "auto"
        self.draws_bytes = max_bytes // 2
        self.activation_bytes = max_bytes // 4
        self.cutter = RowCutter(model, batch_size, self.activation_bytes)
        self._checked_sites = self._checked_shape = self._checked_one_row = False

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Evaluation mode and untouched buffers while the block lasts."""
        with evaluating(self.model), frozen_buffers(self.model):
            yield

    def check_sites(self, draws: Mapping[str, Tensor]) -> None:
        """Refuses draws that lack a site, which would silently be drawn from the prior.

        Raises:
            ValueError: If they do (only for models whose sites are known without data).
        """
        sample_latents = latent_sampler(self.model)
        if sample_latents is None:
            return
        with (
            random_state.preserved(self.device),
            SubstituteMessenger({name: value[0] for name, value in draws.items()}) as run,
        ):
            sample_latents()
        missing = [message["name"] for message in run.latent if message["name"] not in draws]
        if missing:
            raise ValueError(
                f"guide: it has no draws of the model's site {missing[0]!r} ({len(missing)} missing in all); it has "
                f"{', '.join(list(draws)[:8])}. Pass the guide (or draws) of this model."
            )

    def summaries(self, draws: dict[str, Tensor], x: Any, summarize: Summarize) -> Iterator[dict[str, Tensor]]:
        """``summarize(outputs)`` under each of the draws ``{site: [k, …]}``, in chunks ``{name: [k', N, …]}`` of draws.

        Draws that have buffers (:class:`~pyrobnn.model.draws.Draws`) are run with these.
        """
        x, own = inputs_on(x, self.device), Draws.of(draws).buffers
        draws = Draws(to_device(dict(draws), self.device), to_device(own, self.device))
        if not self._checked_sites:
            self.check_sites(draws)
            self._checked_sites = True
        run = functools.partial(self.outputs, draws.at(0))
        parts = self.cutter.parts(x, run)
        if self.method == "vmap":
            try:
                yield from self._vmapped(draws, parts, run, summarize)
                return
            except NotVectorizedError as error:
                if not self.can_fall_back:
                    raise
                warnings.warn(f"{error} Draws are run one by one, as with method='loop'.", stacklevel=2)
                self.method = "loop"
        count = len(next(iter(draws.values())))
        pending: list[dict[str, Tensor]] = []
        for index in range(count):
            pending.append(self._looped(draws.at(index), parts, summarize))
            nbytes = sum(tensor.nbytes for tensor in pending[0].values())
            if index + 1 == count or len(pending) * nbytes > _STACKED_BYTES:
                yield {name: torch.stack([summary[name] for summary in pending]) for name in pending[0]}
                pending = []

    def outputs(self, draw: Draws, x: Any) -> Tensor:
        """The outputs under one draw, for a look at what the network does."""
        with installed_buffers(self.model, draw.buffers), SubstituteMessenger(draw):
            return model_outputs(self.model, x)

    def _looped(self, draw: Draws, parts: list[Part], summarize: Summarize) -> dict[str, Tensor]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(installed_buffers(self.model, draw.buffers))
            if isinstance(self.model, SupervisedModel) and isinstance(net := self.model.net, BayesianModule):
                with SubstituteMessenger(draw):
                    weights = net.sample_weights()
                plain = stack.enter_context(net.written(weights))
                outputs = [self.model.select(run_network(plain, part.inputs)) for part in parts]
            else:
                stack.enter_context(SubstituteMessenger(draw))
                outputs = [model_outputs(self.model, part.inputs) for part in parts]
        joined = join_outputs(outputs, parts)
        if not self._checked_one_row and has_one_row(parts):
            refuse_squeezed(parts[0].inputs, joined, functools.partial(self.outputs, draw))
            self._checked_one_row = True
        with SubstituteMessenger(draw):
            if not self._checked_shape:
                self.likelihood.target_shape(joined)  # refuses outputs that are not what it takes
                self._checked_shape = True
            return summarize(joined)

    def _vmapped(
        self, draws: Draws, parts: list[Part], outputs_of: Callable[[Any], Tensor], summarize: Summarize
    ) -> Iterator[dict[str, Tensor]]:
        def one(draw: dict[str, Tensor], buffers: dict[str, Tensor], part: Part) -> dict[str, Tensor]:
            with installed_buffers(self.model, buffers), SubstituteMessenger(draw):
                outputs = model_outputs(self.model, part.inputs)
                check_outputs(outputs, part.rows)
                return summarize(outputs)

        if not self._checked_one_row and has_one_row(parts):
            refuse_squeezed(parts[0].inputs, outputs_of(parts[0].inputs), outputs_of)
            self._checked_one_row = True
        count = len(next(iter(draws.values())))
        size = max(1, min(count, self.activation_bytes // self.cutter.nbytes(parts[0], outputs_of)))
        for start in range(0, count, size):
            chunk = draws.at(slice(start, start + size))
            # The inputs are not mapped; a function of the draws alone takes them whatever they are.
            runs = [torch.func.vmap(functools.partial(one, part=part), randomness="different") for part in parts]
            try:
                with attention_under_vmap(self.device):
                    pieces = [run(dict(chunk), chunk.buffers) for run in runs]
            except RuntimeError as error:
                if start or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise NotVectorizedError(
                    f"method: torch cannot vmap this network ({str(error).splitlines()[0]}); use method='loop'."
                ) from error
            yield {name: torch.cat([piece[name] for piece in pieces], 1) for name in pieces[0]}


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
