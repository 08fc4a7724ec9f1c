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

__all__ = ["DROPOUTS", "PREFIX", "activation_of", "traced"]

PREFIX = "net"
"""Name of the network in its trace."""

DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
"""Functions that change nothing where dropout is off; a trace keeps the mode that the network was in."""

_FUNCTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), (nn.ReLU, ())),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), (nn.Tanh, ())),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), (nn.Sigmoid, ())),
    **dict.fromkeys((F.silu,), (nn.SiLU, ())),
    **dict.fromkeys((F.softplus,), (nn.Softplus, ("beta", "threshold"))),
    **dict.fromkeys((F.elu,), (nn.ELU, ("alpha",))),
    **dict.fromkeys((F.mish,), (nn.Mish, ())),
    **dict.fromkeys((F.selu,), (nn.SELU, ())),
}
"""Functions and methods that stand for a module, and the names of its options, in the order of their arguments."""

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
        elif node.target in _FUNCTIONS:
            layer = _module_of(node, *_FUNCTIONS[node.target])
        if layer is None:
            return None
    for kind in type(layer).__mro__:
        if kind in own:
            return own[kind]
    make = ACTIVATIONS.get(type(layer))
    return None if make is None else make(layer)


def _module_of(node: fx.Node, kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module | None:
    """The module that a call of a function is, with the options of the call; None if it has options of another kind."""
    options: dict[str, Any] = dict(zip((*names, "inplace"), node.args[1:], strict=False))
    options |= {name: value for name, value in node.kwargs.items() if name != "input"}
    options.pop("inplace", None)
    if not all(name in names and isinstance(value, int | float) for name, value in options.items()):
        return None
    return kind(**options)


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
