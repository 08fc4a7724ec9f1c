"""Bayesian optimization."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.decisions import BayesianOptimization, expected_improvement
from pyrobnn.decisions.bayesian_optimization import Criterion, log_expected_improvement

GRID = torch.linspace(-1, 1, 81).unsqueeze(1)


def function(x: Tensor) -> float:
    """One maximum, 1 at 0.3, and a lower one at -0.6."""
    at = float(x)
    return math.exp(-20 * (at - 0.3) ** 2) + 0.6 * math.exp(-20 * (at + 0.6) ** 2)


def fit(x: Tensor, y: Tensor, previous: Any) -> tuple[Any, Any]:
    """The exact posterior of a linear model on radial features."""
    centers = torch.linspace(-1, 1, 15)

    class Features(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (-20 * (x - centers).square()).exp()

    features = Features()(x)
    mode = torch.linalg.solve(features.T @ features / 0.05**2 + torch.eye(15), features.T @ y / 0.05**2)
    net = nn.Sequential(Features(), nn.Linear(15, 1, bias=False))
    net[1].weight.data = mode.unsqueeze(0)
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.05), num_data=len(x))
    guide = pb.guides.Laplace(model, structure="full").fit(model, [(x, y.unsqueeze(1))])
    return model, guide


def test_expected_improvement_against_quadrature() -> None:
    mean, std = torch.tensor([-1.0, 0.0, 0.5, 2.0]).double(), torch.tensor([0.3, 1.0, 0.1, 0.5]).double()
    y = torch.linspace(-12, 12, 200_001).double().unsqueeze(1)
    density = torch.distributions.Normal(mean, std).log_prob(y).exp()
    expected = torch.trapezoid((y - 0.4).clamp_min(0) * density, y, dim=0)
    torch.testing.assert_close(expected_improvement(mean, std, 0.4), expected, rtol=1e-5, atol=1e-8)


def test_without_uncertainty_it_is_the_gain() -> None:
    mean = torch.tensor([0.0, 1.0])
    assert expected_improvement(mean, torch.zeros(2), 0.4).tolist() == pytest.approx([0.0, 0.6])
    far = expected_improvement(torch.tensor([-50.0]), torch.ones(1), 0.0)
    assert float(far) >= 0 and bool(far.isfinite())


def test_logarithms_of_the_improvement() -> None:
    """By scipy's Φ, which has its digits in the tail; far out by ``φ(z) / z² (1 - 3 / z² + 15 / z⁴)``."""
    z = torch.linspace(-8.0, 6.0, 57).double()
    expected = torch.as_tensor(z.numpy() * stats.norm.cdf(z.numpy()) + stats.norm.pdf(z.numpy()))
    found = expected_improvement(0.1 + 0.7 * z, torch.full_like(z, 0.7), 0.1)
    torch.testing.assert_close(found, 0.7 * expected, rtol=1e-11, atol=0)
    single = expected_improvement((0.1 + 0.7 * z).float(), torch.full_like(z, 0.7).float(), 0.1)
    torch.testing.assert_close(single.double(), 0.7 * expected, rtol=1e-4, atol=0)
    z = -torch.tensor([40.0, 1e3, 9e4, 1e6]).double()
    series = (1.0 - 3.0 / z.square() + 15.0 / z**4).log() - 2.0 * z.abs().log()
    wanted = series - 0.5 * z.square() - 0.5 * math.log(2.0 * math.pi)
    torch.testing.assert_close(log_expected_improvement(z, torch.ones(4).double(), 0.0), wanted, rtol=1e-9, atol=0)
    known = log_expected_improvement(torch.tensor([0.0, 1.0]), torch.zeros(2), 0.4)
    assert known.tolist() == pytest.approx([-math.inf, math.log(0.6)])


def test_improvements_that_are_no_numbers_are_still_compared() -> None:
    """In single precision all of these are 0, of which the first was taken."""
    mean, std = torch.tensor([-60.0, -20.0, -40.0]), torch.ones(3)
    assert expected_improvement(mean, std, 0.0).tolist() == [0.0, 0.0, 0.0]
    assert int(log_expected_improvement(mean, std, 0.0).argmax()) == 1


@pytest.mark.parametrize("criterion", ["expected_improvement", "thompson"])
def test_it_finds_the_larger_maximum_with_few_evaluations(criterion: Criterion) -> None:
    """Within 0.02 of it after 18 of 81 candidates, for each of five seeds; random search is not."""
    for seed in range(5):
        loop = BayesianOptimization(function, GRID, fit, criterion, seed=seed)
        assert loop.run(18).value > 0.98
        assert len({float(evaluation.x) for evaluation in loop.evaluations}) == 18  # none of them twice
    chance = [BayesianOptimization(function, GRID, fit, initial=18, seed=seed).run(18).value for seed in range(20)]
    assert sum(value > 0.98 for value in chance) < 18


def test_it_goes_on_where_it_was() -> None:
    whole, parts = (BayesianOptimization(function, GRID, fit) for _ in range(2))
    whole.run(9)
    parts.run(7)
    parts.run(9)
    assert [e.value for e in parts.evaluations] == [e.value for e in whole.evaluations]
    assert whole.best.value == max(e.value for e in whole.evaluations)


def test_candidates_can_be_drawn() -> None:
    before = torch.get_rng_state()
    loop = BayesianOptimization(function, lambda n: torch.rand(n, 1) * 2 - 1, fit, num_candidates=200)
    assert loop.run(18).value > 0.98
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_input_is_refused() -> None:
    given: dict[str, Any] = {"function": function, "candidates": GRID, "fit": fit}
    for options, kind, name in (
        ({"criterion": "ei"}, ValueError, "criterion"),
        ({"initial": 0}, ValueError, "initial"),
        ({"num_candidates": 0}, ValueError, "num_candidates"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"seed": -1}, ValueError, "seed"),
        ({"candidates": GRID[:3]}, ValueError, "candidates"),
        ({"candidates": GRID[:, 0]}, ValueError, "candidates"),
        ({"candidates": 3}, TypeError, "candidates"),
        ({"function": 3}, TypeError, "function"),
        ({"fit": None}, TypeError, "fit"),
    ):
        with pytest.raises(kind, match=rf"^{name}: "):
            BayesianOptimization(**(given | options))
    with pytest.raises(ValueError, match=r"^best: "):
        _ = BayesianOptimization(**given).best
    for bad, kind in ((lambda x: math.nan, ValueError), (lambda x: "one", TypeError)):
        with pytest.raises(kind, match=r"^function: "):
            BayesianOptimization(bad, GRID, fit).run(1)
    with pytest.raises(ValueError, match=r"^candidates: all 3"):
        BayesianOptimization(function, GRID[:3], fit, initial=3).run(4)
    with pytest.raises(ValueError, match=r"^std: "):
        expected_improvement(torch.zeros(2), -torch.ones(2), 0.0)
    with pytest.raises(ValueError, match=r"^std: "):
        expected_improvement(torch.zeros(2), torch.ones(3), 0.0)
