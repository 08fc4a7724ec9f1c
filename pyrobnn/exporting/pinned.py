"""Pinned draws as what a network's parameters and buffers are: the same in all draws, or different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrobnn.core.pyro_compat import full_name
from pyrobnn.exporting.errors import ExportError
from pyrobnn.model.bayesianize import BayesianModule
from pyrobnn.model.draws import Draws
from pyrobnn.model.network_copy import copied
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["PinnedWeights", "pinned_weights"]


@dataclass(frozen=True)
class PinnedWeights:
    """What K draws put into a network and a likelihood.

    Attributes:
        network: A copy of the network in evaluation mode, whose parameters hold no numbers.
        shared: Tensors of the network by name that are the same in all draws; parameters without a site among them.
        varying: Those that are not, ``[K, ...]``.
        latents: Sites of the likelihood, ``[K, ...]``.
        buffers: Names of those that are buffers.
    """

    network: nn.Module
    shared: dict[str, Tensor]
    varying: dict[str, Tensor]
    latents: dict[str, Tensor]
    buffers: frozenset[str]


@torch.no_grad()
def pinned_weights(model: SupervisedModel, chunks: Iterable[Mapping[str, Tensor]]) -> PinnedWeights:
    """The weights of a network under draws.

    Args:
        model: The model.
        chunks: Draws of its sites ``{site: [k, ...]}``, in chunks.

    Raises:
        ExportError: If members of an ensemble have buffers of their own outside of the network.
    """
    parts = [Draws.of(chunk) for chunk in chunks]
    draws = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    buffers = {name: torch.cat([part.buffers[name] for part in parts]) for name in parts[0].buffers}
    net: BayesianModule = model.net
    stacked = {alias: draws[full_name(net, site)] for site, names in net.parameter_names.items() for alias in names}
    owned = _buffers_of_network(model, net.network, buffers)
    prefix = full_name(model.likelihood, "")
    latents = {name: value for name, value in draws.items() if name.startswith(prefix)}
    own = {name: value for name, value in net.network.named_parameters(remove_duplicate=False) if name not in stacked}
    shared = {name: value.detach() for name, value in own.items()}
    varying = {}
    for name, value in {**stacked, **owned}.items():
        if bool((value == value[:1]).all()):
            shared[name] = value[0]
        else:
            varying[name] = value
    return PinnedWeights(_emptied(net.network), shared, varying, latents, frozenset(owned))


def _buffers_of_network(model: nn.Module, network: nn.Module, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of buffers by their name in the network, given those by their name in the model."""
    paths = {id(module): path for path, module in network.named_modules()}
    modules, found = dict(model.named_modules()), {}
    for name, value in buffers.items():
        path, _, local = name.rpartition(".")
        inner = paths.get(id(modules[path]))
        if inner is not None:
            found[f"{inner}.{local}" if inner else local] = value
        elif not torch.equal(value, model.get_buffer(name).expand_as(value)):
            raise ExportError(
                f"guide: its members have values of their own for the buffer {name!r}, which is none of the network's; "
                "export a member by itself."
            )
    return found


def _emptied(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode that is given its parameters at each run, and holds none."""
    twin = copied(network).eval()
    for module in twin.modules():
        for name, value in module.named_parameters(recurse=False):
            empty = nn.Parameter(value.new_empty(0), requires_grad=False)
            setattr(module, name, empty)
    return twin
