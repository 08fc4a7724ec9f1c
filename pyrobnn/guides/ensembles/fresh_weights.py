"""Fresh weights of a network's layers, as their constructors draw them; of LoRA adapters as PEFT does, B at zero."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["draw_fresh_weights"]


def draw_fresh_weights(network: nn.Module, used: Collection[str]) -> None:
    """Draws the weights of all layers anew: by ``reset_parameters()``, or as torch's constructors do where it has none.

    Args:
        network: The network, which is changed.
        used: Names of the parameters that must be drawn anew.

    Raises:
        ValueError: If it is not known how a layer with such a parameter draws it.
    """
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters() if name in used}
    layers = dict(network.named_modules())
    for name, layer in layers.items():
        reset = _reset_of(layer)
        if parametrize.is_parametrized(layer):
            _reset_parametrized(name, layer, used)
        elif reset is not None:
            reset()
        elif not isinstance(layer, nn.MultiheadAttention):
            _refuse_unknown(name, layer, layers, used, before)
    for layer in layers.values():  # after the layers that they consist of
        if isinstance(layer, nn.MultiheadAttention):
            _reset_attention(layer)
        elif (reset_adapter := getattr(layer, "reset_lora_parameters", None)) is not None:
            for adapter in layer.active_adapters:
                reset_adapter(adapter, True)  # True for PEFT's own start, which needs no base weights
        elif isinstance(layer, nn.Transformer):
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)


def _reset_of(layer: nn.Module) -> Callable[[], Any] | None:
    reset: Callable[[], Any] | None = getattr(layer, "reset_parameters", None)
    return reset


def _reset_attention(layer: nn.MultiheadAttention) -> None:
    """What the constructor of :class:`torch.nn.MultiheadAttention` does."""
    for name, parameter in layer.named_parameters(recurse=False):
        if name in ("bias_k", "bias_v"):
            nn.init.xavier_normal_(parameter)
        elif parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)
    if layer.in_proj_bias is not None:  # torch sets both or neither
        nn.init.zeros_(layer.out_proj.bias)


def _reset_parametrized(name: str, layer: nn.Module, used: Collection[str]) -> None:
    """Resets the tensors as if they were not parametrized, and takes their values through the inverses."""
    assert isinstance(layer.parametrizations, nn.ModuleDict)
    tensors = [local for local in layer.parametrizations if any(n.startswith(_path(name, local)) for n in used)]
    reset = _reset_of(layer)
    with torch.no_grad(), parametrize.cached():
        computed = {local: getattr(layer, local) for local in tensors}  # what the function changes in place
        if reset is not None:
            reset()
        fresh = {local: value.clone() for local, value in computed.items()}
    for local, value in fresh.items():
        try:
            if reset is None:
                raise NotImplementedError
            with torch.no_grad():
                setattr(layer, local, value)
        except (NotImplementedError, RuntimeError, ValueError):  # a parametrization without an inverse
            _refuse(name, layer, next(n for n in used if n.startswith(_path(name, local))))


def _path(name: str, tensor: str) -> str:
    return f"{_prefix(name)}parametrizations.{tensor}."


def _refuse_unknown(
    name: str,
    layer: nn.Module,
    layers: dict[str, nn.Module],
    used: Collection[str],
    before: dict[str, Tensor],
) -> None:
    """Refuses a layer with parameters of its own that the layer around it has not drawn anew."""
    prefix, around = _prefix(name), layers.get(name.rpartition(".")[0])
    if isinstance(around, nn.ModuleDict) and name.rpartition(".")[0].endswith("parametrizations"):
        return  # by the layer that is parametrized
    own = [local for local, _ in layer.named_parameters(recurse=False) if prefix + local in used]
    is_list = isinstance(layer, nn.ParameterList | nn.ParameterDict) and around is not None
    if is_list and _reset_of(around) is not None:  # type: ignore[arg-type]
        own = [local for local in own if torch.equal(layer.get_parameter(local), before[prefix + local])]
    _refuse(name, layer, own[0] if own else None)


def _refuse(name: str, layer: nn.Module, parameter: str | None) -> None:
    if parameter is not None:
        raise ValueError(
            f"init: the {type(layer).__name__} {name!r} has a parameter of its own, {parameter!r}, but no "
            "reset_parameters() that would start it anew for each member; pass a list of freshly built networks, "
            "init='prior', or a function (site name, prior) -> value."
        )


def _prefix(name: str) -> str:
    return f"{name}." if name else ""
