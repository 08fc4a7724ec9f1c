"""The network that an inner maximization attacks during training: that of one draw, fixed and in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["AttackedNetwork", "attacking", "tensor_inputs"]


class AttackedNetwork:
    """A network under one draw, as a function of its inputs; made by :func:`attacking`.

    No gradient reaches the parameters of guide and model. Under an estimator that draws at the layers, the weights are
    the one draw that the layers of the training step share.

    Args:
        model: The model.
        draws: The draw.
    """

    def __init__(self, model: SupervisedModel, draws: Draws) -> None:
        self.model, self._draws = model, draws.detached()

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs ``[B, ...]``."""
        with self._draws.running(self.model, update=False):
            return self.model.predictive(x)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """The negative log likelihood of each row ``[B]``, in nats, not weighted.

        Args:
            x: Inputs ``[B, ...]``.
            y: Targets ``[B, ...]``.

        Raises:
            ValueError: If targets do not fit the outputs.
        """
        with self._draws.running(self.model, update=False):
            outputs = self.model.predictive(x)
            self.model.likelihood.check_shape(outputs, y)
            return -self.model.likelihood(outputs).log_prob(y)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of each row's loss with respect to its inputs, of the shape of ``x``."""
        moved = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.losses(moved, y).sum(), moved)
        return slope

    def features(self, x: Tensor, layer: str | None = None) -> Tensor:
        """What a layer returns for each row, flattened ``[B, d]``.

        Args:
            x: Inputs ``[B, ...]``.
            layer: Name of a module of the network; None for the network's outputs.

        Raises:
            ValueError: If there is no such module, or it does not return a tensor with a row for each input.
        """
        if layer is None:
            return self.outputs(x).flatten(1)
        found: list[Any] = []
        with self._hooked(layer, found):
            self.outputs(x)
        if len(found) != 1 or not isinstance(found[0], Tensor) or len(found[0]) != len(x):
            raise ValueError(
                f"layer: {layer!r} must return one tensor with a row for each input, once a run; it returned "
                f"{len(found)} values."
            )
        return found[0].flatten(1)

    @contextlib.contextmanager
    def _hooked(self, layer: str, found: list[Any]) -> Iterator[None]:
        network = self.model.net.network
        names = [name for name, _ in network.named_modules() if name]
        if layer not in names:
            raise ValueError(f"layer: the network has no module {layer!r}; it has {', '.join(names)}.")
        handle = network.get_submodule(layer).register_forward_hook(lambda module, args, result: found.append(result))
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def attacking(model: Any, draws: Draws) -> Iterator[AttackedNetwork]:
    """The network of a draw for the block, in evaluation mode and with gradients enabled.

    Args:
        model: The model.
        draws: The draw.

    Raises:
        TypeError: If the model is no ``SupervisedModel``.
    """
    if not isinstance(model, SupervisedModel):
        raise TypeError(f"model: training against attacks needs a SupervisedModel, got {type(model).__name__}.")
    with evaluating(model), torch.enable_grad():
        yield AttackedNetwork(model, draws)


def tensor_inputs(args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch, whose inputs can be perturbed.

    Raises:
        TypeError: If the inputs are no floating-point tensor, or there are no targets.
    """
    if len(args) < 2 or not isinstance(args[1], Tensor):
        raise TypeError("loader: training against attacks needs batches of inputs and targets, (x, y).")
    x = args[0]
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"loader: inputs can be perturbed if they are one floating-point tensor, got {kind}.")
    return x, args[1]
