"""Activation checkpointing inside a network whose weights are drawn.

``torch.utils.checkpoint`` runs a part of the network again in the backward pass, when the drawn weights are no longer
in the network. Here it gets them back for that run, with the buffers and modes of the first, however many draws have
a graph by then. Reentrant checkpoints run as non-reentrant ones: a backward pass inside the backward pass would go on
into the graph of the draw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from pyrobnn.core.module_state import modes_restored
from pyrobnn.core.pyro_compat import intercept_checkpoints, is_in_transform

__all__ = ["Substitution", "keeping_activations"]

intercept_checkpoints(lambda function: _again(function))


class Substitution:
    """The weights that a network is run with; a context manager for the run, inside which checkpoints know them.

    Args:
        network: The network.
        weights: The weights by every name they have in it.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.network, self.weights = network, weights
        self._token: Any = None

    def __enter__(self) -> None:
        self._token = _active.set(self)

    def __exit__(self, *_: object) -> None:
        _active.reset(self._token)

    def keeping(self, function: Callable[..., Any]) -> Callable[..., Any] | None:
        """``function``, to be called when the run is over; None where it cannot be and activations must be kept."""
        if any(
            type(weight) not in (Tensor, nn.Parameter) or is_in_transform(weight) for weight in self.weights.values()
        ):
            return None  # layers that draw would draw anew; a transform such as vmap is over by then
        buffers = dict(self.network.named_buffers())
        modes = [(module, module.training) for module in self.network.modules()]
        runner = _Runner(self.network)

        def again(*args: Any, **kwargs: Any) -> Any:
            held = {f"net.{name}": value for name, value in self.weights.items()}
            held |= {f"net.{name}": buffer.clone() for name, buffer in buffers.items()}
            with modes_restored(self.network), Substitution(self.network, self.weights):
                for module, training in modes:
                    module.training = training
                return functional_call(runner, held, (function, args, kwargs), tie_weights=False)

        return again


_active: ContextVar[Substitution | None] = ContextVar("pyrobnn_substitution", default=None)
_keeps_activations: ContextVar[bool] = ContextVar("pyrobnn_keeps_activations", default=False)


@contextlib.contextmanager
def keeping_activations() -> Iterator[None]:
    """Networks in the block keep all activations, for runs that cannot be repeated later (hooks, tracing)."""
    token = _keeps_activations.set(True)
    try:
        yield
    finally:
        _keeps_activations.reset(token)


def _again(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """What a checkpoint calls in the backward pass; None to run without a checkpoint."""
    substitution = _active.get()
    if _keeps_activations.get():
        return None
    return function if substitution is None else substitution.keeping(function)


class _Runner(nn.Module):
    """Calls a function while the network's weights are substituted."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network

    def forward(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)
