"""A network's layers in order (:mod:`torch.fx`), and the activation that a step of it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pyrobnn.function_space.activations import ACTIVATIONS
from pyrobnn.function_space.dual import DualActivation
from pyrobnn.function_space.hermite import HermiteSeries

__all__ = ["PREFIX", "activation_of", "traced"]

PREFIX = "net"
"""Name of the network in its trace."""

_FUNCTIONS: dict[Any, nn.Module] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), nn.ReLU()),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), nn.Tanh()),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), nn.Sigmoid()),
    **dict.fromkeys((F.silu,), nn.SiLU()),
    **dict.fromkeys((F.softplus,), nn.Softplus()),
    **dict.fromkeys((F.elu,), nn.ELU()),
    **dict.fromkeys((F.mish,), nn.Mish()),
    **dict.fromkeys((F.selu,), nn.SELU()),
}
"""Functions and methods that stand for a module with default options."""

_SMOOTH: dict[Any, Callable[[Tensor], Tensor]] = {torch.sin: torch.sin, torch.cos: torch.cos, torch.erf: torch.erf}


def activation_of(
    node: fx.Node, layer: nn.Module | None, own: Mapping[type[nn.Module], DualActivation]
) -> DualActivation | None:
    """The activation that a step is, a module or a function; None if it is something else."""
    if layer is None:
        if node.target is F.gelu:
            layer = nn.GELU(str(node.kwargs.get("approximate", "none")))
        elif node.target is F.leaky_relu:
            slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
            layer = nn.LeakyReLU(float(str(slope)))
        elif node.target in _SMOOTH:
            return HermiteSeries(_SMOOTH[node.target])
        elif node.target in _FUNCTIONS and len(node.args) == 1:
            layer = _FUNCTIONS[node.target]
        else:
            return None
    for kind in type(layer).__mro__:
        if kind in own:
            return own[kind]
    make = ACTIVATIONS.get(type(layer))
    return None if make is None else make(layer)


def traced(network: nn.Module, leaves: tuple[type[nn.Module], ...]) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """The steps of a network of one input, and its modules by the names they have there.

    Args:
        network: The network.
        leaves: Classes of modules that are one step, in addition to torch's own layers.

    Raises:
        ValueError: If its forward computes with values, so that there is no fixed order, or it has several inputs.
    """
    whole = nn.Sequential()  # so that a network that is one layer is a step, too
    whole.add_module(PREFIX, network)
    try:
        graph = _Tracer(leaves).trace(whole)
    except (TypeError, RuntimeError, NameError, fx.proxy.TraceError) as error:
        raise ValueError(
            f"net: its layers cannot be listed, since its forward computes with values ({error}); write it as layers "
            "in a fixed order."
        ) from error
    return graph, dict(whole.named_modules())


class _Tracer(fx.Tracer):
    """Takes torch's layers, and modules whose second moments are given, as one step."""

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one step."""
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)
