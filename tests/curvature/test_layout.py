"""Which weights each structure covers, and what is refused."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrobnn import likelihoods, priors
from pyrobnn.curvature import DiagonalBlock, Group, KroneckerBlock, lay_out
from pyrobnn.guides import MAP
from pyrobnn.model.supervised import SupervisedModel


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 3))


def groups(structure: Any, net: nn.Module | None = None, prior: Any = None, **options: Any) -> list[Group]:
    prior = dist.Normal(0.0, 1.0) if prior is None else prior
    model = SupervisedModel(net or network(), likelihoods.Categorical(), prior, num_data=8)
    guide = MAP(model)
    return lay_out(model, guide.layout, structure, options.pop("last_layer", None), guide.flat_loc.detach())


def names(found: list[Group]) -> dict[str, list[str]]:
    return {group.name: [site.name for site in group.sites] for group in found}


ALL = [f"net.{layer}.{local}" for layer in (0, 3, 4) for local in ("weight", "bias")]


def test_structures() -> None:
    by_layer = {str(layer): [f"net.{layer}.weight", f"net.{layer}.bias"] for layer in (0, 3, 4)}
    assert names(groups("full")) == {"all": ALL}
    assert names(groups("diagonal")) == names(groups("kronecker")) == by_layer
    for structure in ("last_layer", "diagonal", "kronecker"):
        assert names(groups(structure, last_layer="3")) == {"3": by_layer["3"]}


@pytest.mark.parametrize("structure", ["full", "diagonal", "kronecker"])
def test_every_covered_element_is_in_one_place(structure: str) -> None:
    found = groups(structure)
    index = torch.cat([group.block.index for group in found])
    assert len(index.unique()) == len(index) == sum(site.numel for group in found for site in group.sites)


def test_a_factored_layer_keeps_its_bias_as_the_last_column() -> None:
    group = groups("kronecker")[1]
    weight, bias = group.sites
    index = group.block.index.reshape(4, 9)
    assert index[2, 5] == weight.offset + 2 * 8 + 5
    assert index[2, 8] == bias.offset + 2


def test_tied_weights_are_not_factored() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    net[1].weight = net[0].weight
    assert list(names(groups("kronecker", net))) == ["2"]


def test_a_bias_without_a_prior_leaves_the_weight() -> None:
    found = groups("kronecker", nn.Linear(3, 2), [("bias", None), ("*", dist.Normal(0.0, 1.0))])
    assert names(found) == {"": ["net.weight"]}


def test_scales_of_hierarchical_priors_are_not_covered() -> None:
    found = groups("last_layer", nn.Linear(3, 2), priors.horseshoe(), last_layer="")
    assert names(found) == {"": ["net.weight.raw", "net.bias.raw"]}


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match="structure: expected one of last_layer, diagonal, kronecker, full, got 'kfac'"
    ):
        groups("kfac")
    with pytest.raises(ValueError, match=r"last_layer: it needs structure='last_layer', .* not 'full'"):
        groups("full", last_layer="4")
    with pytest.raises(ValueError, match=r"no layer '1' has sites; those that have are '0', '3', '4'"):
        groups("last_layer", last_layer="1")
    with pytest.raises(TypeError, match=r"last_layer: expected a layer's name, a bool or None, got 4"):
        groups("last_layer", last_layer=4)
    with pytest.raises(ValueError, match="last_layer: structure='last_layer' is about that layer"):
        groups("last_layer", last_layer=False)
    with pytest.raises(ValueError, match="a full matrix over 10,100 weights is too large"):
        groups("full", nn.Linear(100, 100))
    with pytest.raises(ValueError, match=r"'kronecker' covers no site of this model.*that are not tied"):
        groups("kronecker", nn.Linear(3, 2), priors.horseshoe())


def test_a_large_last_layer_is_factored() -> None:
    """10,100 weights: its full matrix would take 800 MB, its factors 80 kB."""
    (group,) = groups("last_layer", nn.Linear(100, 100), last_layer="")
    assert isinstance(group.block, KroneckerBlock)
    for net in (nn.Linear(4, 2001), nn.Bilinear(20, 20, 30)):  # factors of many rows, and none at all
        (group,) = groups("last_layer", net, last_layer="")
        assert isinstance(group.block, DiagonalBlock)


def test_the_output_of_attention_is_not_factored() -> None:
    """Attention computes with the weights of that layer and does not call it."""
    net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert list(names(groups("kronecker", net))) == ["linear1", "linear2"]
