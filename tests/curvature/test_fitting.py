"""Filling blocks: sums over the data, and the priors at the mode."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.core.batches import Batch
from pyrobnn.curvature import Group, fill, lay_out
from pyrobnn.guides import MAP
from pyrobnn.model.supervised import SupervisedModel

X, Y = torch.randn(10, 3).double(), torch.arange(10) % 3


def filled(structure: Any, batches: list[tuple[Tensor, Tensor]], prior: Any = None) -> tuple[list[Group], float, bool]:
    torch.manual_seed(0)
    prior = dist.Normal(0.5, 2.0) if prior is None else prior
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    model = SupervisedModel(net, likelihoods.Categorical(), prior, num_data=10).double().eval()
    guide = MAP(model).double()
    last_layer = "2" if structure == "last_layer" else None
    groups = lay_out(model, guide.layout, structure, last_layer, guide.flat_loc.detach())
    values = {name: value.detach() for name, value in guide.rsample().items()}
    log_likelihood, is_normal = fill(model, values, groups, [Batch.of(*batch) for batch in batches], max_bytes=2**20)
    expected = dist.Categorical(logits=model.net.network(X)).log_prob(Y).sum()
    assert log_likelihood == pytest.approx(float(expected))
    for group in groups:
        weights = torch.cat([values[site.name].flatten() for site in group.sites])
        assert float(group.block.log_prior) == pytest.approx(float(dist.Normal(0.5, 2.0).log_prob(weights).sum()))
        assert float(group.block.prior_squares) == pytest.approx(float((weights - 0.5).square().sum() / 4))
        assert float(group.block.log_prior_det) == pytest.approx(-group.block.size * math.log(4.0))
    return groups, log_likelihood, is_normal


@pytest.mark.parametrize("structure", ["full", "diagonal", "kronecker", "last_layer"])
def test_sums_over_the_data_do_not_depend_on_batches(structure: str) -> None:
    whole, _, is_normal = filled(structure, [(X, Y)])
    parts, _, _ = filled(structure, [(X[:3], Y[:3]), (X[3:4], Y[3:4]), (X[4:], Y[4:])])
    assert is_normal
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.block.spectrum(), b.block.spectrum())
        torch.testing.assert_close(a.block.variances(), b.block.variances())


def test_a_data_set_seen_in_part_or_twice_is_refused() -> None:
    for batches in ([(X[:5], Y[:5])], [(X, Y), (X, Y)], []):
        with pytest.raises(ValueError, match="but the model has num_data=10; curvature is summed over the whole data"):
            filled("diagonal", batches)


def test_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"y: Categorical expects targets of shape \(10,\)"):
        filled("diagonal", [(X, Y.unsqueeze(1))])
