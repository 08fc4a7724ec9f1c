"""Running a network under posterior draws: one by one, written in place, or several at once by vmap."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.trees import leaves, num_rows, take_rows, to_device
from pyrobnn.model.bayesianize import BayesianModule, evaluating, frozen_buffers
from pyrobnn.model.declarations import latent_sampler
from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel, run_network

__all__ = ["Method", "Runner", "inputs_on", "model_outputs", "splittable_rows"]

Method = Literal["auto", "loop", "vmap"]
Summarize = Callable[[Tensor], dict[str, Tensor]]

_STACKED_BYTES = 2**20  # small predictions are reduced several draws at a time, which saves calls
_CHUNK_ROWS = 256  # longer batches only add page faults on a CPU


class Runner:
    """Pushes inputs through a model under given draws.

    Args:
        model: A Pyro model that returns the network's outputs when called with inputs only.
        likelihood: The likelihood; the model's if None.
        method: ``"loop"``, ``"vmap"`` or ``"auto"``.
        max_bytes: Budget for draws and activations.

    Raises:
        TypeError: If the model has no likelihood and none is given.
        ValueError: If ``method`` is unknown or cannot run this network, or ``max_bytes`` is not positive.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood | None, method: Method, max_bytes: int) -> None:
        own = likelihood if likelihood is not None else getattr(model, "likelihood", None)
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
        self.draws_bytes = max_bytes // 2
        self.activation_bytes = max_bytes // 4
        self._row_bytes: int | None = None
        self._checked_sites = False

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
        if self.method == "vmap":
            yield from self._vmapped(draws, x, summarize)
            return
        count = len(next(iter(draws.values())))
        pending: list[dict[str, Tensor]] = []
        for index in range(count):
            pending.append(self._looped(draws.at(index), x, summarize))
            nbytes = sum(tensor.nbytes for tensor in pending[0].values())
            if index + 1 == count or len(pending) * nbytes > _STACKED_BYTES:
                yield {name: torch.stack([summary[name] for summary in pending]) for name in pending[0]}
                pending = []

    def _looped(self, draw: Draws, x: Any, summarize: Summarize) -> dict[str, Tensor]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(installed_buffers(self.model, draw.buffers))
            if isinstance(self.model, SupervisedModel) and isinstance(net := self.model.net, BayesianModule):
                with SubstituteMessenger(draw):
                    weights = net.sample_weights()
                    parts = list(self._parts(x, 1))  # may run the model once, which needs a draw substituted
                plain = stack.enter_context(net.written(weights))
                outputs = torch.cat([self.model.select(run_network(plain, part)) for part in parts])
            else:
                stack.enter_context(SubstituteMessenger(draw))
                outputs = torch.cat([model_outputs(self.model, part) for part in self._parts(x, 1)])
        with SubstituteMessenger(draw):
            return summarize(outputs)

    def _vmapped(self, draws: Draws, x: Any, summarize: Summarize) -> Iterator[dict[str, Tensor]]:
        def one(draw: dict[str, Tensor], buffers: dict[str, Tensor], part: Any) -> dict[str, Tensor]:
            with installed_buffers(self.model, buffers), SubstituteMessenger(draw):
                return summarize(model_outputs(self.model, part))

        count = len(next(iter(draws.values())))
        rows = splittable_rows(x) or 1
        chunk_size = max(
            1, min(count, self.activation_bytes // max(1, self._bytes_per_row(x) * min(rows, _CHUNK_ROWS)))
        )
        run = torch.func.vmap(one, in_dims=(0, 0, None), randomness="different")
        for start in range(0, count, chunk_size):
            chunk = draws.at(slice(start, start + chunk_size))
            pieces = [run(dict(chunk), chunk.buffers, part) for part in self._parts(x, len(next(iter(chunk.values()))))]
            yield {name: torch.cat([piece[name] for piece in pieces], 1) for name in pieces[0]}

    def _parts(self, x: Any, num_samples: int) -> Iterator[Any]:
        rows = splittable_rows(x)
        if rows is None:  # such as a graph, which is run whole
            yield x
            return
        size = min(_CHUNK_ROWS, max(1, self.activation_bytes // max(1, num_samples * self._bytes_per_row(x))))
        for start in range(0, rows, size):
            yield take_rows(x, slice(start, start + size), rows) if size < rows else x

    def _bytes_per_row(self, x: Any) -> int:
        """Activation memory of one input: twice the largest layer's input and output, seen in one run."""
        rows = splittable_rows(x)
        if self._row_bytes is None:
            largest = [1]

            def record_size(_: nn.Module, inputs: Any, output: Any) -> None:
                tensors = [t for t in (*inputs, output) if isinstance(t, Tensor)]
                largest[0] = max(largest[0], sum(t.numel() * t.element_size() for t in tensors))

            layers = [module for module in self.model.modules() if not list(module.children())]
            hooks = [layer.register_forward_hook(record_size) for layer in layers]
            try:
                with random_state.preserved(self.device):
                    model_outputs(self.model, x if rows is None else take_rows(x, slice(0, 1), rows))
            finally:
                for hook in hooks:
                    hook.remove()
            self._row_bytes = 2 * largest[0]
        return self._row_bytes


def model_outputs(model: nn.Module, x: Any) -> Tensor:
    """The network's outputs, under the draw that is substituted by the active handlers.

    Raises:
        TypeError: If the model returns no tensor.
    """
    outputs = model.predictive(x) if isinstance(model, SupervisedModel) else run_network(model, x)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"model: called with inputs it returned a {type(outputs).__name__}; predict needs a model that returns the "
            "network's outputs as one tensor."
        )
    return outputs


def splittable_rows(x: Any) -> int | None:
    """The number of rows of inputs that can be cut into rows; None for those that cannot, such as graphs."""
    if next(leaves(x), None) is None:
        return 0
    try:
        rows = num_rows(x)
        take_rows(x, slice(0, 0), rows)
    except ValueError:
        return None
    return rows


def inputs_on(x: Any, device: torch.device) -> Any:
    """Inputs on ``device``.

    Raises:
        TypeError: If there is something among them that is neither a tensor nor can be moved like one.
    """
    for leaf in leaves(x):
        if not isinstance(leaf, bool | int | float) and not callable(getattr(leaf, "to", None)):
            raise TypeError(f"data: expected tensors as inputs, got {type(leaf).__name__}; use torch.as_tensor.")
    return to_device(x, device)
