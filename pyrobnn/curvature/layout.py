"""Which weights a curvature structure covers, and in which blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from pyrobnn.core.pyro_compat import full_name
from pyrobnn.curvature.blocks import Block, DiagonalBlock, KroneckerBlock
from pyrobnn.curvature.dense import DenseBlock
from pyrobnn.curvature.kronecker import kronecker_layers
from pyrobnn.model.bayesianize import BayesianModule, bayesian_modules
from pyrobnn.model.supervised import SupervisedModel

if TYPE_CHECKING:
    from pyrobnn.model.layout import Site

__all__ = ["Group", "Structure", "check_structure", "lay_out"]

Structure = Literal["last_layer", "diagonal", "kronecker", "full"]

_MAX_FACTOR = 2_000  # rows of a Kronecker factor that is chosen by itself: seconds of eigh
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


def check_structure(structure: Any, last_layer: Any) -> None:
    """Refuses a structure that is none, and a last layer that is none or goes with no structure.

    Raises:
        TypeError: If ``last_layer`` is neither a name, nor a bool, nor None.
        ValueError: If the structure is unknown, or has no use for a last layer.
    """
    if structure not in get_args(Structure):
        raise ValueError(f"structure: expected one of {', '.join(get_args(Structure))}, got {structure!r}.")
    if not (last_layer is None or isinstance(last_layer, str | bool)):
        raise TypeError(f"last_layer: expected a layer's name, a bool or None, got {last_layer!r}.")
    if structure == "last_layer" and last_layer is False:
        raise ValueError("last_layer: structure='last_layer' is about that layer; leave it None, or pass its name.")
    if structure == "full" and last_layer not in (None, False):
        raise ValueError("last_layer: it needs structure='last_layer', 'diagonal' or 'kronecker', not 'full'.")


def lay_out(
    model: Any, sites: Mapping[str, Site], structure: Structure, last_layer: str | None, like: Tensor
) -> list[Group]:
    """The groups of a structure: weights of networks; of a Pyro model of one's own all real-valued sites.

    Args:
        model: The Pyro model, which holds converted networks.
        sites: The guide's sites.
        structure: The structure; ``"last_layer"`` is a full matrix, where that is too large (over 10,000 weights) a
            Kronecker product, and where its factors are, too (over 2,000 rows), the diagonal.
        last_layer: The only layer that is covered; all of them if None.
        like: The flat vector.

    Raises:
        ValueError: If the structure is unknown, covers nothing, or would need a matrix that is too large.
    """
    check_structure(structure, last_layer)
    assert last_layer is not None or structure != "last_layer"
    networks = bayesian_modules(model) if isinstance(model, nn.Module) else []
    if isinstance(model, SupervisedModel) or structure in ("last_layer", "kronecker") or last_layer is not None:
        weights = list(_weights(networks, sites))
    else:  # by the Hessian, of whatever is real
        weights = [(name, site) for name, site in sites.items() if site.is_real]
    factored: list[Group] = []
    if last_layer is not None:
        weights = _of_layer(weights, last_layer)
    is_large = structure == "last_layer" and sum(site.numel for _, site in weights) > _MAX_DENSE
    if structure == "kronecker" or is_large:
        factored = [group for net in networks for group in _factored(net, sites, like, last_layer)]
    if is_large and not (factored and max(_factor_sizes(factored[0])) <= _MAX_FACTOR):
        structure, factored = "diagonal", []
    if structure == "kronecker" or factored:
        groups = factored
    else:
        kind: type[Block] = DiagonalBlock if structure == "diagonal" else DenseBlock
        names = ["all" if structure == "full" else layer for layer, _ in weights]
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
                if site is not None and site.is_linear and not site.plates:
                    yield name.rpartition(".")[0], site


def _of_layer(weights: list[tuple[str, Site]], name: str) -> list[tuple[str, Site]]:
    chosen = [(layer, site) for layer, site in weights if layer == name]
    if not chosen:
        known = ", ".join(repr(layer) for layer in dict.fromkeys(layer for layer, _ in weights))
        raise ValueError(f"last_layer: no layer {name!r} has sites; those that have are {known}.")
    return chosen


def _factor_sizes(group: Group) -> torch.Size:
    block = group.block
    return block.shape if isinstance(block, KroneckerBlock) else torch.Size([block.size])


def _group(name: str, sites: list[Site], kind: type[Block], like: Tensor) -> Group:
    index = torch.cat([torch.arange(site.offset, site.offset + site.numel) for site in sites])
    if kind is DenseBlock and len(index) > _MAX_DENSE:
        raise ValueError(
            f"structure: a full matrix over {len(index):,} weights is too large (at most {_MAX_DENSE:,}); use "
            "structure='kronecker' or 'diagonal' (with last_layer=True for the last layer only)."
        )
    return Group(name, tuple(sites), kind(index, like))


def _factored(network: BayesianModule, sites: Mapping[str, Site], like: Tensor, only: str | None) -> Iterator[Group]:
    for layer_name, layer in kronecker_layers(network.network).items():
        if only not in (None, layer_name):
            continue
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
