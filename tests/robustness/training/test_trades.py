"""TRADES: its value, the inner maximum, and what a radius of 0 leaves."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.guides import MAP
from pyrobnn.objectives import ELBO, Objective
from pyrobnn.robustness.training import TRADES
from pyrobnn.robustness.training.attacked import attacking
from tests.conformance.comparisons import assert_same
from tests.conformance.objective_suite import ObjectiveConformance
from tests.robustness.training.problems import FAMILIES, fitted, linear_problem, problem


class TestTRADES(ObjectiveConformance):
    further_terms = frozenset({"trades"})

    def make(self) -> Objective:
        return ELBO(terms=[TRADES(0.1, 2.0, steps=2)])


@pytest.mark.parametrize("family", FAMILIES)
def test_radius_zero_is_plain_training(family: str) -> None:
    expected, history = fitted(family, ELBO())
    found, other = fitted(family, ELBO(terms=[TRADES(0.0)]))
    assert_same(found.state_dict(), expected.state_dict(), rtol=1e-6, atol=1e-6)
    assert other.terms["trades"] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert other.elbo == pytest.approx(history.elbo)


def test_the_largest_divergence_of_a_linear_model_is_at_one_of_two_corners() -> None:
    """KL of two classes is a function of one number, their logit, and convex about the input's: an end is worst."""
    model, guide, (x, y) = linear_problem()
    draw = guide.rsample()
    weight = draw["net.weight"].detach()
    with attacking(model, draw) as network:
        p = network.outputs(x).log_softmax(-1).detach()
        corners = [x + side * 0.3 * (weight[1] - weight[0]).sign() for side in (-1.0, 1.0)]
        ends = [(p.exp() * (p - network.outputs(corner).log_softmax(-1))).sum(1).detach() for corner in corners]
    elbo = ELBO(terms=[TRADES(0.3, steps=20)])
    torch.manual_seed(0)
    elbo.loss(model, guide, x, y)
    assert elbo.parts is not None
    found = float(elbo.parts.values["trades"])
    assert sum(float(torch.minimum(*ends)[i]) for i in range(10)) <= found <= float(torch.maximum(*ends).sum()) * 1.0001
    assert found > 0.9 * float(torch.minimum(*ends).sum())


def test_perturbed_inputs_stay_in_ball_and_range() -> None:
    model, guide, (x, y) = problem("MeanField")
    term, seen = TRADES(0.3, clip=(0.0, 1.0)), []
    perturbed = term.perturbed
    term.perturbed = lambda *args: seen.append(perturbed(*args)) or seen[-1]  # type: ignore[method-assign]
    ELBO(terms=[term]).loss(model, guide, x, y)
    assert float((seen[0] - x).abs().max()) <= 0.3 * (1 + 1e-12)
    assert float(seen[0].min()) >= 0.0 and float(seen[0].max()) <= 1.0


def test_what_cannot_be_compared_is_refused() -> None:
    real = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=12)
    with pytest.raises(TypeError, match=r"^model: TRADES compares class probabilities"):
        ELBO(terms=[TRADES(0.1)]).loss(real, MAP(real), torch.rand(12, 3), torch.zeros(12, 1))
    for options, named in (({"epsilon": -1.0}, "epsilon"), ({"epsilon": 0.1, "steps": 0}, "steps")):
        with pytest.raises(ValueError, match=f"^{named}: "):
            TRADES(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^weight: "):
        TRADES(0.1, -1.0)
