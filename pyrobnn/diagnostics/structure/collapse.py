r"""From a posterior over structures to one plain network.

:func:`collapse` takes one structure and one set of weights out of a posterior and builds the network that they are: a
:class:`Choice` becomes the operation that was chosen, a :class:`Depth` its first d blocks, a :class:`Gate` its layer,
zeros or a fixed mask. What was not chosen is removed, and so is every class of this package: what replaces zeros and
masks are :class:`torch.fx.GraphModule`. The outputs are those of the model at the one-hot structure.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics.structure.posterior import Structure, distribution, structure_values
from pyrobnn.guides import ConcreteStructure, Guide
from pyrobnn.layers.structure.modules import Choice, Depth, Gate
from pyrobnn.layers.structure.operations import Zero
from pyrobnn.layers.structure.sites import StructureSite
from pyrobnn.model.bayesianize import BayesianModule, bayesian_modules
from pyrobnn.model.draws import Draws
from pyrobnn.model.network_copy import copied
from pyrobnn.model.substitution import SubstituteMessenger

__all__ = ["collapse"]

_TIE = 1e-6  # probabilities that differ by less name no most probable choice


@explained
def collapse(
    model: nn.Module, guide: Guide, structure: Structure | None = None, *, draw: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The plain network of one structure.

    Args:
        model: The model, with one converted network.
        guide: Its guide, fitted.
        structure: What to choose (:func:`~pyrobnn.structure.most_probable` shows its form); the most probable if None.
        draw: Values of the sites of weights, such as ``guide.sample(1).at(0)``; the posterior's means if None.

    Returns:
        A copy of the network without any module of this package. Its weights can be trained on; its running statistics
        are those of the model, averages over structures: update them by :func:`torch.optim.swa_utils.update_bn`.

    Raises:
        ValueError: If the guide has not been fitted, no choice is the most probable one, the structure does not fit,
            there is not one converted network, or the posterior of the weights has no single mean (an ensemble).
    """
    networks = bayesian_modules(model)
    if len(networks) != 1:
        raise ValueError(f"model: expected one converted network, found {len(networks)}.")
    if structure is None:
        _check_fitted(guide)
        table = distribution(model, guide)
        _check_unambiguous(table.probabilities)
        structure = table.most_probable()
    chosen = structure_values(model, structure)
    values, buffers = _weights(guide, chosen, draw)
    with torch.no_grad(), SubstituteMessenger(values | chosen):
        weights = networks[0].sample_weights()
    return _build(model, networks[0], weights, buffers)


def _check_fitted(guide: Guide) -> None:
    for part in guide.parts_of(ConcreteStructure):
        if not part.is_fitted:
            raise ValueError(
                "guide: its structure has not been fitted, so none is more probable than another; run pyrobnn.fit "
                "first, or say which by structure=."
            )


def _check_unambiguous(probabilities: Mapping[str, Tensor]) -> None:
    for site, table in probabilities.items():
        if table.dim() > 1:
            first, second = table.topk(2, -1).values.unbind(-1)
            gap = first - second
        else:
            gap = (2.0 * table - 1.0).abs()
        if bool((gap < _TIE).any()):
            raise ValueError(
                f"guide: at the site {site!r} two choices are equally probable, as before fitting; fit the guide, or "
                "say which by structure=."
            )


def _weights(
    guide: Guide, chosen: Mapping[str, Tensor], draw: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values of the sites of weights, and the buffers that belong to them."""
    others = [site for site in guide.layout.values() if site.name not in chosen]
    if draw is not None:
        if missing := [site.name for site in others if site.name not in draw]:
            raise ValueError(f"draw: it has no value for the site {missing[0]!r}; pass one draw of this guide.")
        return {site.name: draw[site.name].detach() for site in others}, Draws.of(draw).buffers
    values = {}
    for site in others:
        part = guide.part(site.name)
        if (part.facts.num_points or 0) > 1:
            raise ValueError(
                f"guide: the weights {site.name!r} belong to a {type(part).__name__}, whose members have no single "
                "mean; pass one draw, draw=guide.sample(1).at(0)."
            )
        try:
            values[site.name] = part.marginal(site.name).mean.detach()  # type: ignore[attr-defined]
        except NotImplementedError:
            raise ValueError(
                f"guide: the posterior of {site.name!r} has no closed mean; pass one draw, draw={{site: value}}."
            ) from None
    return values, {}


def _build(
    model: nn.Module, converted: BayesianModule, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> nn.Module:
    """A copy of the network with its weights written and its choices made."""
    original = converted.network
    network = copied(original)
    with torch.no_grad():
        for name in converted.parameter_names:
            parameter = network.get_parameter(name)
            parameter.data = weights[name].detach().to(parameter).clone()
            parameter.requires_grad_(True)
        places = {id(buffer): name for name, buffer in original.named_buffers()}
        named = dict(model.named_buffers())
        for name, buffer in buffers.items():
            if id(named[name]) in places:
                network.get_buffer(places[id(named[name])]).copy_(buffer)
    fixed = {name for name, module in original.named_modules() if isinstance(module, StructureSite)}
    random = {name.rpartition(".")[0] for name in converted.parameter_names}
    if kept := sorted(fixed - random):
        raise ValueError(
            f"model: the structure of {kept[0]!r} is fixed at relaxed weights by a prior rule, so there is nothing to "
            "collapse to."
        )
    return _plain(network, {}).train(original.training)


def _plain(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module with all choices made, once for modules that are shared."""
    if module not in done:
        if isinstance(module, Choice):
            row = module.edges.structure[module.index]
            done[module] = _plain(module.operation(int(row.argmax())), done)
        elif isinstance(module, Depth):
            row = module.depths.structure[module.index]
            depth = module.min_depth + int(row.argmax())
            done[module] = nn.Sequential(*(_plain(block, done) for block in module.blocks[:depth]))
        elif isinstance(module, Gate):
            done[module] = _gated(module, done)
        elif isinstance(module, Zero):
            done[module] = fx.symbolic_trace(module)
        elif isinstance(module, StructureSite):
            done[module] = nn.Identity()  # the user's module has it but does not use it
        else:
            done[module] = module
            for name, child in module._modules.items():  # named_children would skip the second name of a shared one
                if child is not None:
                    module._modules[name] = _plain(child, done)
    return done[module]


def _gated(gate: Gate, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The layer, zeros, or the layer with a mask behind it."""
    is_open = gate.gates.structure > 0.5
    layer = nn.Identity() if gate.layer is None else _plain(gate.layer, done)
    if bool(is_open.all()):
        return layer
    if bool(is_open.any()):
        return nn.Sequential(layer, _mask(gate.gates.structure.detach().clone(), gate.dim))
    zeros = fx.symbolic_trace(Zero())
    return zeros if gate.keeps_shape else nn.Sequential(layer, zeros)


def _mask(mask: Tensor, dim: int) -> fx.GraphModule:
    """Multiplies dimension ``dim`` by a mask."""
    root: Any = nn.Module()
    root.register_buffer("mask", mask)
    graph = fx.Graph()
    moved = graph.call_method("movedim", (graph.placeholder("x"), dim, -1))
    product = graph.call_function(operator.mul, (moved, graph.get_attr("mask")))
    graph.output(graph.call_method("movedim", (product, -1, dim)))
    return fx.GraphModule(root, graph)
