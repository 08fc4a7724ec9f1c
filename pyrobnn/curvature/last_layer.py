"""Which layer of a Bayesian network is the last one, by runs on a batch, and whether the outputs are linear in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyrobnn.core.attention import attention_as_trained
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.curvature.features import LastLayer, features_of
from pyrobnn.curvature.kronecker import input_rows, is_supported
from pyrobnn.model.bayesianize import BayesianModule
from pyrobnn.model.last_layer import (
    LayerCalls,
    layers_with_matrices,
    recorded_calls,
    refuse_several,
    refuse_tied,
    weights_besides,
)
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

if TYPE_CHECKING:
    from pyrobnn.model.layout import Site

__all__ = ["Run", "find_last_layer"]


@dataclass(frozen=True)
class Run:
    """A run of the network at the mode.

    Attributes:
        outputs: What it returned.
        calls: The call of the layer that ran last.
    """

    outputs: Tensor
    calls: LayerCalls


def find_last_layer(
    model: SupervisedModel, values: Mapping[str, Tensor], sites: Mapping[str, Site], x: Any, name: str | None
) -> tuple[LastLayer, Run]:
    """The layer that ran last and makes the outputs, or the one that is named, by runs on a batch.

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites.
        sites: The guide's sites.
        x: A batch of inputs.
        name: The layer's name, None to find it.

    Returns:
        The layer, and the run of the batch, so that it need not be run again.

    Raises:
        ValueError: If there is no last layer: its weights are frozen, tied or without a site of the guide, or there
            are several; or if the outputs do not depend on the layer that is named.
    """
    net: BayesianModule = model.net
    layers = layers_with_matrices(net.network)
    watched = layers if name is None else {name: net.network.get_submodule(name)}
    with torch.no_grad(), SubstituteMessenger(values), recorded_calls(watched) as calls:
        outputs = model.predictive(x)
    if name is None:
        if calls.last is None:
            raise ValueError(
                "last_layer: no layer with a weight matrix ran, so there is none that is last; name it by last_layer=, "
                "or use structure='diagonal' or 'full'."
            )
        name = calls.last
        _check_sites(net, name, layers[name], sites)
        is_found = True
    else:
        is_found = False
    module = net.network.get_submodule(name)
    own = [site for site in sites.values() if _layer_of(net, site.name) == name and site.is_real]
    found = features_of(LastLayer(name, module, True, True, False), calls, outputs)
    plain = [full_name(net, f"{name}.{local}" if name else local) for local in ("weight", "bias")]
    named = {site.name for site in own}
    is_plain = plain[0] in named and named <= set(plain) and is_supported(module)
    has_bias = any(site.name == plain[1] for site in own)
    if found is not None and is_plain and _reproduces(module, values, plain, calls):
        return LastLayer(name, module, True, True, has_bias), Run(outputs, calls)

    def run(weights: Mapping[str, Tensor]) -> Tensor:
        with SubstituteMessenger({**values, **weights}), attention_as_trained():
            return model.predictive(x)

    if is_found:
        others = {n: v.detach().clone().requires_grad_() for n, v in values.items() if _layer_of(net, n) != name}
        others = {n: v for n, v in others.items() if v.dim() > 1}
        if others and (besides := weights_besides(module, others, lambda: run(others))):
            refuse_several(name, [n.removeprefix(full_name(net, "")) for n in besides])
    is_linear = _is_linear(run, {site.name: values[site.name] for site in own}, name)
    return LastLayer(name, module, is_linear, False, has_bias), Run(outputs, calls)


def _layer_of(net: BayesianModule, site: str) -> str | None:
    """The name of the layer that a site is a weight of."""
    prefix = full_name(net, "")
    if not site.startswith(prefix):
        return None
    rest = site.removeprefix(prefix)
    owners = [name for name in net.parameter_names if rest == name or rest.startswith(f"{name}.")]
    return max(owners, key=len).rpartition(".")[0] if owners else None


def _check_sites(net: BayesianModule, name: str, module: nn.Module, sites: Mapping[str, Site]) -> None:
    """Refuses a last layer whose weights are not sites of the guide, or not its own."""
    owner = {alias: site for site, aliases in net.parameter_names.items() for alias in aliases}
    for local, parameter in module.named_parameters(recurse=False):
        full = f"{name}.{local}" if name else local
        site = owner.get(full)
        if site is not None and len(aliases := net.parameter_names[site]) > 1:
            refuse_tied(name, next(alias for alias in aliases if alias != full))
        if parameter.dim() < 2:
            continue
        random = site is not None and any(_layer_of(net, n) == name for n in sites)
        if not random:
            reason = (
                "has no prior (it is frozen, or a rule leaves it out)" if site is None else "is no site of this guide"
            )
            raise ValueError(
                f"last_layer: the layer {name!r} makes the outputs, but its {local!r} {reason}, so there is nothing to "
                "approximate there; give it a prior, or name another layer by last_layer=."
            )


def _reproduces(module: nn.Module, values: Mapping[str, Tensor], names: list[str], calls: LayerCalls) -> bool:
    """Whether the layer's output is its weight times its inputs (a subclass may compute something else)."""
    weight = values[names[0]]
    assert calls.inputs is not None
    rows = input_rows(module, calls.inputs) @ weight.flatten(1).mT
    bias = values.get(names[1], getattr(module, "bias", None))
    expected = rows if bias is None else rows + bias
    output = calls.output.movedim(1, -1) if isinstance(module, nn.Conv2d) else calls.output
    return _close(output.reshape(expected.shape), expected)


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 3.0 * torch.finfo(expected.dtype).eps ** 0.5
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@torch.no_grad()
def _is_linear(run: Any, weights: dict[str, Tensor], name: str) -> bool:
    """Whether the outputs at ``w``, ``w + d`` and ``w + 2 d`` are on a line, for a step as large as the weights."""

    def at(factor: float) -> Tensor:
        moved = {}
        for site, value in weights.items():
            steps = torch.arange(1, value.numel() + 1, dtype=value.dtype, device=value.device).sin()
            moved[site] = value + factor * steps.reshape(value.shape) * (value.square().mean().sqrt() + 0.1)
        return run(moved)

    start, middle, end = at(0.0), at(1.0), at(2.0)
    moved = float((middle - start).abs().max())
    if not moved:
        raise ValueError(f"last_layer: the outputs do not depend on the weights of the layer {name!r}; name another.")
    eps = torch.finfo(start.dtype).eps
    return bool((end - 2.0 * middle + start).abs().max() <= 3.0 * eps**0.5 * moved + 30.0 * eps * start.abs().max())
