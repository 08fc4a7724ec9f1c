"""Functions of the posterior differ off the data."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.function_space import DataBox, UncertaintyOffData, violations
from pyrobnn.guides import DeltaMixture, MeanField
from pyrobnn.objectives import ELBO
from tests.function_space.constraints.constraint_suite import SIX, ConstraintConformance, functions

X = torch.rand(20, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1


class TestUncertaintyOffData(ConstraintConformance):
    further_terms = frozenset({"uncertainty_off_data"})
    compares_draws = True
    offset = 3.0
    epochs = 250  # small scales have small gradients

    def constraint(self, **options: Any) -> UncertaintyOffData:
        return UncertaintyOffData(**{"minimum": 0.5, "inputs": SIX, **options})

    def of_regression(self, **options: Any) -> UncertaintyOffData:
        return UncertaintyOffData(**{"minimum": 1.0, "inputs": 3 + X, **options})


def test_the_sample_variance_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    three = [functions(1, slope, 0.0)[0] for slope in (1.0, 0.5, 0.0)]
    found = UncertaintyOffData(0.7, x, num_draws=2).violation(three[:2], x)
    torch.testing.assert_close(found, 0.49 - 0.5 * torch.tensor([0.25, 2.25]))
    found = UncertaintyOffData(0.7, x, num_draws=3).violation(three, x)
    torch.testing.assert_close(found, 0.49 - 0.25 * torch.tensor([1.0, 9.0]))
    with pytest.raises(ValueError, match="num_draws"):
        UncertaintyOffData(0.7, x, num_draws=1)


def test_more_draws_push_less_beyond_the_minimum() -> None:
    """A weight of standard deviation 1.5 s: the violation is unbiased, the penalty falls with the number of draws.

    Penalties are those of ``s² E max(0, 1 - 2.25 χ²_{K-1} / (K-1))``: 0.340, 0.124 and 0.0056. 100 violations; four
    standard errors.
    """
    model = pb.SupervisedModel(nn.Linear(1, 1, bias=False), pb.likelihoods.Normal(1.0), num_data=4)
    guide, x = MeanField(model, init_scale=1.5), torch.ones(1, 1)
    for draws, expected, error in ((2, 0.340, 0.04), (4, 0.124, 0.024), (16, 0.0056, 0.004)):
        constraint = UncertaintyOffData(1.0, x, num_draws=draws)
        found = violations(model, guide, constraint, x, 100, seed=0)
        assert float(constraint.penalty(found.values).mean()) == pytest.approx(expected, abs=4 * error)
        spread = 2.25 * (2 / (draws - 1) / 100) ** 0.5
        assert float(found.values.mean()) == pytest.approx(1 - 2.25, abs=4 * spread)


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
        pb.fit(model, guide, [(x, x.sin())], epochs=200, lr=3e-2, elbo=elbo, seed=0, progress=False)
        spreads.append([float(pb.predict(model, guide, at, 5).epistemic.sqrt().mean()) for at in (x, off)])
    assert spreads[0][1] < 0.3
    assert spreads[1][1] > 0.4
    assert spreads[1][0] < 0.1
