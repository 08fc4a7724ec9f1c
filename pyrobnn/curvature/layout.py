"""Which weights a curvature structure covers, and in which blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from pyrobnn.core.pyro_compat import full_name
from pyrobnn.curvature.blocks import Block, DenseBlock, DiagonalBlock, KroneckerBlock
from pyrobnn.curvature.kronecker import kronecker_layers
from pyrobnn.model.bayesianize import BayesianModule, bayesian_modules

if TYPE_CHECKING:
    from pyrobnn.model.layout import Site

__all__ = ["Group", "Structure", "lay_out"]

Structure = Literal["last_layer", "diagonal", "kronecker", "full"]

_MAX_DENSE = 10_000  # weights of a dense block: 800 MB in double precision, and a minute or two of eigh


@dataclass(frozen=True)
class Group:
    """Sites that share a block.

    Attributes:
        name: The layer's name in the network; ``"all"`` where the block is for all of them.
        sites: The sites, in the order of the block's weights.
        block: The block.
        layer: The layer, for Kronecker factors.
    """

    name: str
    sites: tuple[Site, ...]
    block: Block
    layer: nn.Module | None = None


def lay_out(
    model: Any, sites: Mapping[str, Site], structure: Structure, last_layer: str | None, like: Tensor
) -> list[Group]:
    """The groups of a structure.

    Args:
        model: The Pyro model, which holds converted networks.
        sites: The guide's sites.
        structure: The structure.
        last_layer: For ``"last_layer"``: the layer's name; the last linear layer if None.
        like: The flat vector.

    Raises:
        ValueError: If the structure is unknown, covers nothing, or would need a matrix that is too large.
    """
    if structure not in get_args(Structure):
        raise ValueError(f"structure: expected one of {', '.join(get_args(Structure))}, got {structure!r}.")
    if last_layer is not None and structure != "last_layer":
        raise ValueError(f"last_layer: it needs structure='last_layer', not {structure!r}.")
    networks = bayesian_modules(model) if isinstance(model, nn.Module) else []
    if structure == "kronecker":
        groups = [group for network in networks for group in _factored(network, sites, like)]
    else:
        weights = list(_weights(networks, sites))
        if structure == "last_layer":
            weights = _of_last_layer(networks, weights, last_layer)
        kind: type[Block] = DiagonalBlock if structure == "diagonal" else DenseBlock
        names = [layer if structure == "diagonal" else "all" for layer, _ in weights]
        groups = [
            _group(name, [site for (_, site), n in zip(weights, names, strict=True) if n == name], kind, like)
            for name in dict.fromkeys(names)
        ]
    if not groups:
        raise ValueError(
            f"structure: {structure!r} covers no site of this model; it needs real-valued sites of a bayesianized "
            "network"
            + (
                ", linear or (ungrouped) 2-d convolutional weights that are not tied"
                if structure == "kronecker"
                else ""
            )
            + "."
        )
    return groups


def _weights(networks: list[BayesianModule], sites: Mapping[str, Site]) -> Iterator[tuple[str, Site]]:
    """``(layer name, site)`` of the networks' real-valued sites; scales of hierarchical priors are none of them."""
    for network in networks:
        for name, prior in network.site_priors.items():
            for suffix in ("", *prior.auxiliary):
                site = sites.get(full_name(network, f"{name}.{suffix}" if suffix else name))
                if site is not None and site.is_real and not site.plates:
                    yield name.rpartition(".")[0], site


def _of_last_layer(
    networks: list[BayesianModule], weights: list[tuple[str, Site]], last_layer: str | None
) -> list[tuple[str, Site]]:
    if last_layer is None:
        linear = [name for net in networks for name, m in net.network.named_modules() if isinstance(m, nn.Linear)]
        random = {layer for layer, _ in weights}
        candidates = [name for name in linear if name in random]
        if not candidates:
            raise ValueError("last_layer: the network has no linear layer with a prior; name the last layer.")
        last_layer = candidates[-1]
    chosen = [(layer, site) for layer, site in weights if layer == last_layer]
    if not chosen:
        known = ", ".join(repr(name) for name in dict.fromkeys(layer for layer, _ in weights))
        raise ValueError(f"last_layer: no layer {last_layer!r} has sites; those that have are {known}.")
    return chosen


def _group(name: str, sites: list[Site], kind: type[Block], like: Tensor) -> Group:
    index = torch.cat([torch.arange(site.offset, site.offset + site.numel) for site in sites])
    if kind is DenseBlock and len(index) > _MAX_DENSE:
        raise ValueError(
            f"structure: a full matrix over {len(index):,} weights is too large (at most {_MAX_DENSE:,}); use "
            "'kronecker', 'diagonal' or 'last_layer'."
        )
    return Group(name, tuple(sites), kind(index, like))


def _factored(network: BayesianModule, sites: Mapping[str, Site], like: Tensor) -> Iterator[Group]:
    for layer_name, layer in kronecker_layers(network.network).items():
        found = []
        for local in ("weight", "bias"):
            name = f"{layer_name}.{local}" if layer_name else local
            site = sites.get(full_name(network, name))
            if site is None or not site.is_real or len(network.parameter_names.get(name, ())) != 1:
                break  # no bias without its weight
            found.append(site)
        if found:
            rows = found[0].shape[0]
            index = torch.cat([torch.arange(s.offset, s.offset + s.numel).reshape(rows, -1) for s in found], 1)
            yield Group(layer_name, tuple(found), KroneckerBlock(index, like), layer)
