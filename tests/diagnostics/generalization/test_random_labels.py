"""Fits of labels at random: what memorizes has complexity 1, what cannot has what theory says."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn import guides
from pyrobnn.diagnostics.generalization import RandomLabelFit, random_label_fit

X = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {"epochs": 150, "lr": 0.02, "repetitions": 2, "num_samples": 1, "seed": 0}


def network(outputs: int, likelihood: Any, hidden: int = 64) -> Any:
    def build() -> tuple[nn.Module, guides.Guide]:
        net = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        model = pb.SupervisedModel(net, likelihood, dist.Normal(0.0, 3.0), num_data=len(X))
        return model, guides.MAP(model)

    return build


@pytest.mark.parametrize(
    ("outputs", "likelihood", "classes"),
    [(1, pb.likelihoods.Bernoulli(), 2), (2, pb.likelihoods.Categorical(), 2), (4, pb.likelihoods.Categorical(), 4)],
)
def test_a_wide_network_fits_random_labels(outputs: int, likelihood: Any, classes: int) -> None:
    test = torch.randn(400, 8), torch.randint(classes, (400,))
    found = random_label_fit(network(outputs, likelihood), X, num_classes=classes, test=test, **OPTIONS)
    assert found.accuracies.tolist() == [1.0, 1.0]
    assert found.estimate == 1.0
    assert found.standard_error == 0.0
    assert found.test_accuracies is not None
    error = (1 / classes * (1 - 1 / classes) / 400) ** 0.5
    assert float((found.test_accuracies - 1 / classes).abs().max()) < 4 * error  # z ≤ 4
    assert f"by chance {1 / classes:.3f}" in str(found)


def test_a_constant_predictor_has_the_complexity_of_the_majority() -> None:
    """The best constant is right on the larger class: E|Σσ| / n = √(2 / πn) (z ≤ 4, 40 labellings of 24 rows)."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias.expand(len(x), 1)

    def build() -> tuple[nn.Module, guides.Guide]:
        model = pb.SupervisedModel(Constant(), pb.likelihoods.Bernoulli(), dist.Normal(0.0, 3.0), num_data=len(X))
        return model, guides.MAP(model)

    options = OPTIONS | {"repetitions": 40, "epochs": 20, "lr": 0.1}
    found = random_label_fit(build, X, **options)
    exact = sum(math.comb(24, k) * abs(2 * k - 24) for k in range(25)) / 2**24 / 24
    assert exact == pytest.approx((2 / math.pi / 24) ** 0.5, rel=0.05)
    assert abs(found.estimate - exact) < 4 * found.standard_error


def test_the_estimate_of_given_accuracies() -> None:
    found = RandomLabelFit(torch.tensor([0.75, 1.0]), None, 2, 10)
    assert found.complexities.tolist() == [0.5, 1.0]
    assert found.estimate == 0.75
    assert found.standard_error == pytest.approx(0.25)
    assert math.isnan(RandomLabelFit(torch.tensor([0.75]), None, 2, 10).standard_error)
    assert RandomLabelFit(torch.tensor([0.25]), None, 4, 10).estimate == 0.0


def test_bad_arguments_are_refused_by_name() -> None:
    build = network(2, pb.likelihoods.Categorical())
    for options, says in (
        ({"num_classes": 1}, "^num_classes: "),
        ({"repetitions": 0}, "^repetitions: "),
        ({"x": X[:0]}, "^x: expected inputs"),
        ({"test": (X, torch.zeros(3))}, "^test: expected as many labels"),
        ({"epochs": 0}, "^epochs: "),
    ):
        with pytest.raises(ValueError, match=says):
            random_label_fit(**{"build": build, "x": X, "epochs": 1} | options)
    for options, says in (
        ({"build": 3}, "^build: expected a function"),
        ({"build": lambda: 3}, "^build: expected it to return"),
        ({"build": network(2, pb.likelihoods.Normal(0.1))}, "^build: random labels need a likelihood of classes"),
        ({"test": X}, "^test: expected"),
    ):
        with pytest.raises(TypeError, match=says):
            random_label_fit(**{"build": build, "x": X, "epochs": 1} | options)
