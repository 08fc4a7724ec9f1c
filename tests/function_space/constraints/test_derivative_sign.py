"""Signs of derivatives: linear and quadratic functions by hand, and a monotone fit."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.function_space import DataBox, DerivativeSign, Monotone, violations
from pyrobnn.guides import MeanField
from pyrobnn.objectives import ELBO
from tests.function_space.constraints.constraint_suite import SIX, ConstraintConformance, functions

X = torch.rand(20, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1


class TestMonotone(ConstraintConformance):
    further_terms = frozenset({"monotone"})

    def constraint(self, **options: Any) -> Monotone:
        return Monotone(**{"input": 0, "inputs": SIX, "output": 1, **options})

    def of_regression(self, **options: Any) -> Monotone:
        return Monotone(**{"input": 0, "inputs": X.to(torch.get_default_dtype()), "increasing": False, **options})


class TestConvex(ConstraintConformance):
    further_terms = frozenset({"derivative_sign"})

    def constraint(self, **options: Any) -> DerivativeSign:
        given = {"input": 0, "sign": "positive", "inputs": SIX, "output": 1, "order": 2}
        return DerivativeSign(**{**given, **options})

    def of_regression(self, **options: Any) -> DerivativeSign:
        return DerivativeSign(**{"input": 1, "sign": "negative", "inputs": X, "order": 2, **options})


@pytest.mark.parametrize("step", [None, 0.5])
def test_slopes_of_a_linear_function(step: float | None) -> None:
    x, width = torch.randn(4, 2), 1.0 if step is None else step
    for index, slope in enumerate((0.7, -0.2)):
        rising = Monotone(index, x, step=step).violation(functions(1, 0.7, -0.2), x)
        falling = Monotone(index, x, step=step, increasing=False).violation(functions(1, 0.7, -0.2), x)
        torch.testing.assert_close(rising, torch.full((4,), -slope * width), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(falling, -rising)


def test_curvature_of_a_parabola() -> None:
    def parabola(x: Tensor) -> Tensor:
        return 1.5 * x[:, :1].square() - x[:, 1:].square()

    x = torch.randn(4, 2)
    convex = DerivativeSign(0, "positive", x, order=2).violation([parabola], x)
    torch.testing.assert_close(convex, torch.full((4,), -3.0))
    by_differences = DerivativeSign(1, "positive", x, order=2, step=0.1).violation([parabola], x)
    torch.testing.assert_close(by_differences, torch.full((4,), 0.02), rtol=1e-3, atol=1e-5)


def test_a_piecewise_linear_network_needs_a_width() -> None:
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    with pytest.raises(ValueError, match="pass the width of a difference"):
        DerivativeSign(0, "positive", X, order=2).violation([net], X)
    assert bool(DerivativeSign(0, "positive", X, order=2, step=0.5).violation([net], X).any())


@pytest.mark.parametrize("rows", [1, 20])
def test_a_linear_function_is_convex_and_concave(rows: int) -> None:
    """Its second derivative is 0 and no sign of a piecewise linear network, nor is that of a product of inputs."""
    for function in (nn.Linear(2, 1), lambda x: x[:, :1] * x[:, 1:]):
        found = DerivativeSign(0, "positive", X, order=2).violation([function], X[:rows])
        assert not bool(found.any())


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({"input": 2}, X, "input: expected an index below 2"),
        ({"input": 0}, X.long(), "needs one tensor of floating-point inputs"),
        ({"input": 0}, (X, X), "needs one tensor of floating-point inputs"),
        ({"input": 0, "output": 1}, X, "output: expected an index below 1"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(options: Any, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Monotone(inputs=X, **options).violation(functions(1, 0.7, -0.2), x)


def test_several_predictions_need_a_choice() -> None:
    with pytest.raises(ValueError, match="predictions have 3 numbers for each row; say which one Monotone is about"):
        Monotone(0, X).violation([lambda x: x.repeat(1, 2)[:, :3]], X)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="sign: expected 'positive' or 'negative'"):
        DerivativeSign(0, "up", X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order: expected 1 or 2"):
        DerivativeSign(0, "positive", X, order=3)
    with pytest.raises(TypeError, match="increasing: expected True or False"):
        Monotone(0, X, increasing=1)  # type: ignore[arg-type]


@pytest.mark.statistical
def test_a_monotone_fit_keeps_it_where_it_was_not_asked() -> None:
    """20 noisy points of a rising function: a fifth of the slopes fall without the constraint, under 2 % with it.

    50 draws at 50 inputs between those of the box; standard errors are 0.03 and 0.002.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 1, generator=generator) * 4 - 2
    y = torch.tanh(2 * x) + 0.3 * torch.randn(20, 1, generator=generator)
    rates = []
    for weight in (0.0, 30.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 30), nn.Tanh(), nn.Linear(30, 1))
        model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=20)
        guide, constraint = (
            MeanField(model),
            Monotone(0, DataBox(-2.0, 2.0, 32), weight, form="probability", temperature=0.1),
        )
        pb.fit(model, guide, [(x, y)], epochs=300, lr=3e-2, elbo=ELBO(terms=[constraint]), seed=0, progress=False)
        grid = torch.linspace(-2, 2, 50).unsqueeze(1)
        rates.append(violations(model, guide, constraint, grid, 50, tolerance=1e-3, seed=0).rate)
    assert rates[0] > 0.1
    assert rates[1] < 0.02
