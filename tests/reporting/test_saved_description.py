"""A checkpoint's specification says what describe() says of the model itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

import pyrobnn as pb
from pyrobnn.checkpoint import specification
from pyrobnn.guides import MAP, Composite, Guide, LowRankNormal, MeanField
from pyrobnn.reporting.saved_description import describe_specification

COLUMNS = ("parameter", "site", "shape", "numel", "prior", "status", "tied")


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[3].weight = net[2].weight
    net[4].bias.requires_grad_(False)
    return net


@pytest.mark.parametrize(
    "prior", [dist.Normal(0.0, 1.0), pb.priors.horseshoe(), [("0.*", None), ("*", pb.priors.he())]]
)
def test_rows_are_those_of_describe(prior: object, tmp_path: Path) -> None:
    model = pb.SupervisedModel(network(), pb.likelihoods.Categorical(), prior=prior, num_data=1234)
    guide = MeanField(model)
    pb.save(tmp_path, model, guide)
    found, expected = describe_specification(specification(tmp_path)), pb.describe(model, guide)
    key = {row["parameter"] or row["site"]: row for row in found.rows}
    for row in expected.rows:
        of_parameter = row["parameter"] is not None
        named = key[row["parameter"] if of_parameter else row["site"]]
        for column in COLUMNS if of_parameter else ("site", "shape", "numel", "status"):
            assert named[column] == row[column], (row, column)
    assert len(found.rows) == len(expected.rows)
    assert "fitted to 1,234 data" in str(found)


@pytest.mark.parametrize("make", [MAP, partial(LowRankNormal, rank=3), partial(Composite, rules=[("*", MAP)])])
def test_the_posterior_is_named_with_its_options(make: object, tmp_path: Path) -> None:
    model = pb.SupervisedModel(network(), pb.likelihoods.Normal(0.5), num_data=10)
    guide = make(model)  # type: ignore[operator]
    assert isinstance(guide, Guide)
    pb.save(tmp_path, model, guide)
    found = describe_specification(specification(tmp_path))
    assert {row["posterior"] for row in found.rows if row["site"]} == {type(guide).__name__}
    assert "likelihood: Normal" in str(found) and f"posterior: {type(guide).__name__}" in str(found)
    assert ("rank=3" in str(found)) == isinstance(guide, LowRankNormal)


def test_a_model_of_another_class_has_its_sites(tmp_path: Path) -> None:
    class Own(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = pb.bayesianize(nn.Linear(2, 1), dist.Normal(0.0, 1.0))

        def forward(self, x: object, y: object = None) -> object:
            return self.net(x)

    model = Own()
    guide = MeanField(model, example=(torch.zeros(1, 2),))
    pb.save(tmp_path, model, guide)
    found = describe_specification(specification(tmp_path))
    assert [row["site"] for row in found.rows] == ["net.weight", "net.bias"]
    assert "Own" in str(found)
