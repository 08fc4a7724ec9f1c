"""Ensembles that share weights up to low-rank factors: the suite, the moments at the start, and the formula."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrobnn import likelihoods
from pyrobnn.checkpoint import load, save
from pyrobnn.guides import MAP, LowRankEnsemble
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.prediction import predict
from pyrobnn.training import make_optimizer
from tests.conformance.comparisons import assert_same
from tests.conformance.guide_suite import EnsembleConformance


class TestLowRankEnsembleConformance(EnsembleConformance):
    """What every guide must do."""

    def make_guide(self, model: nn.Module, **options: Any) -> LowRankEnsemble:
        return LowRankEnsemble(model, 3, 2, **options)


def model_of(net: nn.Module) -> SupervisedModel:
    """A classifier of 24 data."""
    return SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)


@pytest.mark.statistical
@pytest.mark.parametrize("spread", [0.1, 0.5])
@pytest.mark.parametrize("rank", [1, 3])
def test_members_start_around_the_shared_weights(rank: int, spread: float) -> None:
    """``E[A B] = 1`` with standard deviation s, elementwise: 4,000 members, z = 5."""
    net = nn.Conv2d(2, 3, 2)
    nn.init.ones_(net.weight)
    guide = LowRankEnsemble(model_of(net), 4000, rank, spread=spread)
    found = guide.stacked(torch.arange(4000))["net.weight"]
    assert found.shape == (4000, 3, 2, 2, 2)
    error = found.std(0) / 4000**0.5
    assert float(((found.mean(0) - 1.0) / error).abs().max()) < 5.0
    squares = (found - 1.0).square()
    assert float(((squares.mean(0) - spread**2) / (squares.std(0) / 4000**0.5)).abs().max()) < 5.0


@pytest.mark.parametrize(("hidden", "spread"), [(1, 0.2), (19, 0.8 / 20)])
def test_members_scatter_less_in_a_deep_network(hidden: int, spread: float) -> None:
    """Standard deviation of fifty members' first weights around the shared ones, relative to them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), *(nn.Linear(8, 8) for _ in range(hidden - 1)), nn.Linear(8, 2))
    members = LowRankEnsemble(model_of(net), 50).stacked(torch.arange(50))["net.0.weight"]
    assert float((members / net[0].weight.detach() - 1.0).std()) == pytest.approx(spread, rel=0.25)


def test_factors_may_have_a_learning_rate_of_their_own() -> None:
    guide = LowRankEnsemble(model_of(nn.Linear(2, 3)), 2)
    optimizer = make_optimizer(nn.Module(), guide, lr=0.1, scale_lr=0.5)
    slow, fast = optimizer.param_groups
    assert [id(p) for p in fast["params"]] == [id(guide.flat_factors)] and fast["lr"] == 0.5
    assert {id(p) for p in slow["params"]} == {id(guide.flat_shared), id(guide.flat_own)} and slow["lr"] == 0.1


def test_a_member_by_hand() -> None:
    """``w = W ∘ (A B)`` with the kernel read as a matrix; biases are the members' own."""
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 4))
    guide = LowRankEnsemble(model_of(net), 2, 2)
    factors = guide.flat_factors[1].detach()
    left, right = factors[:6].view(3, 2), factors[6:22].view(2, 8)
    expected = net[0].weight.detach() * (left @ right).view(3, 2, 2, 2)
    torch.testing.assert_close(guide.member(1)["net.0.weight"].detach(), expected)
    assert guide.flat_shared.shape == (24 + 12,)
    assert guide.flat_factors.shape == (2, 2 * (3 + 8) + 2 * (4 + 3))
    assert guide.flat_own.shape == (2, 3 + 4)
    torch.testing.assert_close(guide.stacked(torch.tensor([1]))["net.0.weight"][0], expected)


def test_shared_weights_follow_the_mean_and_factors_their_own_member() -> None:
    model = model_of(nn.Linear(3, 4))
    guide = LowRankEnsemble(model, 3)
    x, y = torch.randn(12, 3), torch.randint(4, (12,))
    ELBO().backward(model, guide, (x, y))
    shared = torch.zeros(12)
    for index in range(3):
        values = {name: value.detach() for name, value in guide.member(index).items()}
        point = MAP(model, values)
        ELBO().backward(model, point, (x, y))
        gradient = point.layout.split(point.flat_loc.grad)["net.weight"]
        left, right = guide.flat_factors[index, :4].view(4, 1), guide.flat_factors[index, 4:].view(1, 3)
        shared += (gradient * (left @ right).detach()).flatten() / 3
        by_left = (gradient * guide.flat_shared.view(4, 3)) @ right.T
        torch.testing.assert_close(guide.flat_factors.grad[index, :4], by_left.flatten().detach())
        bias = point.layout.split(point.flat_loc.grad)["net.bias"]
        torch.testing.assert_close(guide.flat_own.grad[index], bias)
    torch.testing.assert_close(guide.flat_shared.grad, shared)


def test_checkpoint(tmp_path: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = model_of(net)
    guide = LowRankEnsemble(model, 3, 2, members_per_step=2)
    ELBO().backward(model, guide, (torch.randn(12, 3), torch.randint(2, (12,))))
    save(tmp_path, model, guide)
    again_model, again = load(tmp_path, net)
    assert_same(again.state_dict(), guide.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(predict(again_model, again, x, 3, seed=1).mean, predict(model, guide, x, 3, seed=1).mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: expected a positive int"),
        ({"spread": 0.0}, "spread: expected a positive standard deviation"),
        ({"num_members": 0}, "num_members: expected a positive int"),
        ({"sites": ["net.bias"]}, "model: none of its sites"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRankEnsemble(model_of(nn.Linear(3, 4)), **options)
