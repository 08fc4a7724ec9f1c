"""The log predictive density of held-out data: masks, weights and forms of batches, against hand-written sums."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.core.random_state import seeded
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training.validation import log_predictive

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randn(12, 2, generator=torch.Generator().manual_seed(2))
MISSING = torch.rand(12, 2, generator=torch.Generator().manual_seed(3)) < 0.4
MISSING[5] = True
WEIGHT = torch.rand(12, generator=torch.Generator().manual_seed(4))
BATCHES = [slice(0, 5), slice(5, 10), slice(10, 12)]


class Masked(pyro.nn.PyroModule):
    """Regression in which targets may be missing: NaN."""

    def __init__(self, num_data: int = 30) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = bayesianize(nn.Linear(3, 2), dist.Normal(0.0, 1.0))
        self.num_data = num_data

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        outputs = self.net(x)
        observed = y.isfinite()
        scale = torch.ones(len(x)) if weight is None else weight
        with (
            pyro.plate("data", self.num_data, subsample=torch.arange(len(x)), dim=-2),
            pyro.plate("outputs", 2, dim=-1),
            poutine.scale(scale=scale[:, None]),
            poutine.mask(mask=observed),
        ):
            pyro.sample("y", dist.Normal(outputs, 0.5), obs=y.nan_to_num(0.0))
        return outputs


def density(outputs: Tensor, y: Tensor) -> Tensor:
    """Log density of each target under noise of standard deviation 0.5."""
    return -2.0 * (y - outputs).square() - math.log(0.5) - 0.5 * math.log(2 * math.pi)


def outputs_of(guide: Any, num_samples: int) -> Tensor:
    """Of the draws that validation takes, ``[K, B, 2]``."""
    with seeded(0, torch.device("cpu")):
        draws = Draws.of(guide.sample(num_samples))
    return torch.stack([X @ draws.at(k)["net.weight"].T + draws.at(k)["net.bias"] for k in range(num_samples)])


@pytest.mark.parametrize("weighted", [False, True])
def test_what_the_model_masks_counts_nothing_and_weights_count(weighted: bool) -> None:
    """Mean over all rows, those included of which nothing is known."""
    y = Y.masked_fill(MISSING, math.nan)
    model = Masked()
    guide = MeanField(model, example=(X, y))
    batches = [(X[rows], y[rows], *([WEIGHT[rows]] if weighted else [])) for rows in BATCHES]
    found = log_predictive(model, guide, batches, num_samples=3)
    by_draw = density(outputs_of(guide, 3), Y).masked_fill(MISSING, 0.0).sum(-1)
    by_row = by_draw.logsumexp(0) - math.log(3)
    assert by_row[5] == pytest.approx(0.0, abs=1e-6)
    expected = (by_row * WEIGHT).mean() if weighted else by_row.mean()
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_weights_of_a_supervised_model(weighted: bool) -> None:
    model = SupervisedModel(nn.Linear(3, 2), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=12)
    guide = MeanField(model)
    batches = [{"input": X[rows], "y": Y[rows]} for rows in BATCHES]
    reader = None
    if weighted:
        batches = [SimpleNamespace(x=X[rows], y=Y[rows], w=WEIGHT[rows]) for rows in BATCHES]  # type: ignore[misc]

        def reader(raw: Any) -> Any:
            return raw.x, raw.y, raw.w

    found = log_predictive(model, guide, batches, num_samples=3, reader=reader)
    by_row = density(outputs_of(guide, 3), Y).sum(-1).logsumexp(0) - math.log(3)
    expected = (by_row * WEIGHT).mean() if weighted else by_row.mean()
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_row_of_weight_zero_counts_nothing_whatever_its_density() -> None:
    """Padding holds any numbers; 0 times minus infinity would make the whole value NaN, and stop no training by it."""
    model = SupervisedModel(nn.Linear(3, 2), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=12)
    guide = MeanField(model)
    y, weight = Y.clone(), WEIGHT.clone()
    y[3], weight[3] = 1e30, 0.0
    found = log_predictive(model, guide, [(X, y, weight)], num_samples=3)
    y[3] = 0.0
    assert found == pytest.approx(log_predictive(model, guide, [(X, y, weight)], num_samples=3), rel=1e-6)
    assert math.isfinite(found)


def test_labels_that_are_ignored_count_nothing() -> None:
    y = torch.tensor([[0, -1], [2, 1], [-1, -1]])
    net = nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (3, 2)))
    model = SupervisedModel(
        net, likelihoods.Categorical(class_dim=1, ignore_index=-1), dist.Normal(0.0, 1.0), num_data=3
    )
    guide = MAP(model)
    logits = net(X[:3]).log_softmax(1)
    expected = (logits[0, 0, 0] + logits[1, 2, 0] + logits[1, 1, 1]) / 3
    assert log_predictive(model, guide, [(X[:3], y)]) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_no_batch_and_wrong_ones_are_refused() -> None:
    model = SupervisedModel(nn.Linear(3, 2), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=12)
    with pytest.raises(ValueError, match=r"^validation: it yielded no batch"):
        log_predictive(model, MAP(model), [])
    with pytest.raises(ValueError, match=r"^x: batch 1 holds NaN or infinite inputs in 12 rows"):
        log_predictive(model, MAP(model), [(X, Y), (X * math.nan, Y)])
    with pytest.raises(ValueError, match=r"^weight: expected finite weights of at least 0"):
        log_predictive(model, MAP(model), [(X, Y, -WEIGHT)])
    with pytest.raises(TypeError, match=r"^validation: expected batches \(x, y\), .* got a Tensor"):
        log_predictive(model, MAP(model), [X])
