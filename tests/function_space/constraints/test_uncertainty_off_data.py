"""Functions of the posterior differ off the data."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.function_space import DataBox, UncertaintyOffData
from pyrobnn.guides import DeltaMixture
from pyrobnn.objectives import ELBO
from tests.function_space.constraints.constraint_suite import SIX, ConstraintConformance, functions

X = torch.rand(20, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1


class TestUncertaintyOffData(ConstraintConformance):
    further_terms = frozenset({"uncertainty_off_data"})
    compares_draws = True
    offset = 3.0
    remaining = 0.8  # half the squared difference of two draws is often small, whatever their variance

    def constraint(self, **options: Any) -> UncertaintyOffData:
        return UncertaintyOffData(**{"minimum": 0.5, "inputs": SIX, **options})

    def of_regression(self, **options: Any) -> UncertaintyOffData:
        return UncertaintyOffData(**{"minimum": 1.0, "inputs": 3 + X, **options})


def test_half_the_squared_difference_is_the_variance() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    pair = [functions(1, 1.0, 0.0)[0], functions(1, 0.5, 0.0)[0]]
    found = UncertaintyOffData(0.7, x).violation(pair, x)
    torch.testing.assert_close(found, 0.49 - 0.5 * torch.tensor([0.25, 2.25]))


@pytest.mark.statistical
def test_an_ensemble_becomes_uncertain_off_the_data_and_not_on_it() -> None:
    """Five members on [-1, 1], asked for a standard deviation of 0.5 on [2, 3]; without the term they have less."""
    x = torch.linspace(-1, 1, 20).unsqueeze(1)
    off = torch.linspace(2, 3, 20).unsqueeze(1)
    spreads = []
    for weight in (0.0, 5.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
        model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=20)
        guide = DeltaMixture(model, num_members=5)
        elbo = ELBO(terms=[UncertaintyOffData(0.5, DataBox(2.0, 3.0, 16), weight)])
        pb.fit(model, guide, [(x, x.sin())], epochs=600, lr=1e-2, elbo=elbo, seed=0, progress=False)
        spreads.append([float(pb.predict(model, guide, at, 5).epistemic.sqrt().mean()) for at in (x, off)])
    assert spreads[0][1] < 0.3
    assert spreads[1][1] > 0.4
    assert spreads[1][0] < 0.1
