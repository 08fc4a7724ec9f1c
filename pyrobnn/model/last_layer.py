"""The last layer of a network, by what it does: the layer with a weight matrix that ran last and made the output.

The order in which layers are defined does not say; a run on data does. A layer is the last one if the output depends
on no other weight matrix but through what it returned. Vectors that come after it (gains, biases, the slope of a PReLU)
do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.attention import attention_as_trained
from pyrobnn.model.priors import NORM_LAYERS

__all__ = ["LayerCalls", "last_layer_of", "layers_named", "layers_with_matrices", "recorded_calls", "weights_besides"]


def layers_with_matrices(net: nn.Module) -> dict[str, nn.Module]:
    """The modules that own a parameter of two or more dimensions, norm layers and containers left out, by name."""
    found = {}
    for name, module in net.named_modules():
        is_container = any(next(child.parameters(), None) is not None for child in module.children())
        has_matrix = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
        if has_matrix and not is_container and not isinstance(module, NORM_LAYERS):
            found[name] = module
    return found


def layers_named(net: nn.Module, layer: str | None) -> dict[str, nn.Module]:
    """One layer by its name, or all those with a weight matrix, of which the last to run has the features.

    Args:
        net: The network.
        layer: The name; None for all.

    Raises:
        ValueError: If there is no such layer.
    """
    layers = layers_with_matrices(net)
    if layer is None:
        return layers
    known = dict(net.named_modules())
    if layer not in known:
        raise ValueError(f"layer: the network has no layer {layer!r}; it has {', '.join(layers)}.")
    return {layer: known[layer]}


@dataclass
class LayerCalls:
    """Calls of layers in one run.

    Attributes:
        last: Name of the layer that ran last, None if none ran.
        count: How often that one ran.
        inputs: What it was called with last, None if that is not one tensor.
        output: What it returned last.
    """

    last: str | None = None
    count: int = 0
    inputs: Tensor | None = None
    output: Any = None
    _counts: dict[str, int] = field(default_factory=dict)

    def restart(self) -> None:
        """Forgets the run, before another one."""
        self.last, self.count, self.inputs, self.output = None, 0, None, None
        self._counts.clear()


@contextmanager
def recorded_calls(layers: Mapping[str, nn.Module]) -> Iterator[LayerCalls]:
    """Records which of the layers runs last while the block lasts."""
    calls = LayerCalls()

    def hook(name: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = [*args, *kwargs.values()]
            calls.last, calls.output = name, output
            calls.inputs = given[0] if len(given) == 1 and isinstance(given[0], Tensor) else None
            calls._counts[name] = calls.count = calls._counts.get(name, 0) + 1

        return record

    handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with attention_as_trained():
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def weights_besides(layer: nn.Module, weights: Mapping[str, Tensor], run: Callable[[], Tensor]) -> list[str]:
    """Names of the ``weights`` on which the output of ``run()`` depends otherwise than through the layer's output.

    Args:
        layer: The layer.
        weights: Weights that require gradients.
        run: Runs the network with these weights.
    """

    def cut(_: nn.Module, args: Any, output: Any) -> Any:
        return output.detach() if isinstance(output, Tensor) else tuple(part.detach() for part in output)

    handle = layer.register_forward_hook(cut)
    try:
        with torch.enable_grad(), attention_as_trained():
            output = run()
            if not output.requires_grad:
                return []
            # Unequal weights, under which the gradients of a softmax do not cancel.
            score = (output * torch.linspace(1.0, 2.0, output.numel(), device=output.device).view_as(output)).sum()
        gradients = torch.autograd.grad(score, list(weights.values()), allow_unused=True)
    finally:
        handle.remove()
    return [name for name, g in zip(weights, gradients, strict=True) if g is not None and bool((g != 0).any())]


def last_layer_of(net: nn.Module, run: Callable[[], Tensor]) -> str:
    """Name of the last layer of a plain network, in which it may be frozen.

    Args:
        net: The network.
        run: Runs it on a batch, with its own parameters.

    Raises:
        ValueError: If there is none: no layer with a weight matrix ran, it shares its weights, or there are several.
    """
    layers = layers_with_matrices(net)
    with torch.no_grad(), recorded_calls(layers) as calls:
        run()
    if calls.last is None:
        raise ValueError("last_layer: no layer with a weight matrix ran, so there is no last layer; name one.")
    layer = layers[calls.last]
    others: dict[str, Tensor] = {}
    own = {id(parameter) for parameter in layer.parameters(recurse=False)}
    for name, module in net.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{local}" if name else local
            if module is not layer and id(parameter) in own:
                refuse_tied(calls.last, full)
            if id(parameter) not in own and parameter.dim() > 1:
                others[full] = parameter
    modes = {name: parameter.requires_grad for name, parameter in others.items()}
    try:
        for parameter in others.values():
            parameter.requires_grad_(True)
        found = weights_besides(layer, others, run) if others else []
    finally:
        for name, parameter in others.items():
            parameter.requires_grad_(modes[name])
    if found:
        refuse_several(calls.last, found)
    return calls.last


def refuse_tied(layer: str, other: str) -> None:
    """Raises the error about a layer that shares its weights."""
    raise ValueError(
        f"last_layer: the layer {layer!r}, which makes the outputs, shares its weights with {other!r} (tied), so there "
        "is no last layer by itself; name another layer, or treat all of them."
    )


def refuse_several(layer: str, others: list[str]) -> None:
    """Raises the error about outputs that several layers make."""
    raise ValueError(
        f"last_layer: the layer {layer!r} ran last, but the outputs also depend on {others[-1]!r} otherwise than "
        f"through it ({len(others)} such in all), so there is no single last layer; name one, or treat all of them."
    )
