"""Networks that vmap cannot run, refused by name where it was requested, and outputs that are refused either way."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.prediction.runners import Runner


class Branching(nn.Module):
    """Control flow on values that depend on the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h if h.sum() > 0 else -2 * h


def branching() -> tuple[SupervisedModel, Tensor]:
    torch.manual_seed(0)
    return SupervisedModel(Branching(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6), torch.randn(6, 3)


def test_vmap_of_a_network_that_it_cannot_run_is_refused() -> None:
    model, x = branching()
    with pytest.raises(ValueError, match=r"^method: torch cannot vmap this network \(.*use method='loop'"):
        predict(model, MeanField(model), x, 4, method="vmap")


def test_without_a_wish_it_is_run_draw_by_draw() -> None:
    model, x = branching()
    draws = MeanField(model, init_scale=1.0).sample(6)
    runner = Runner(model, None, "auto", 2**28)
    h = x @ draws["net.layer.weight"].mT + draws["net.layer.bias"].unsqueeze(1)
    wanted = torch.where(h.sum((1, 2), keepdim=True) > 0, h, -2 * h)
    with torch.no_grad(), runner.ready():
        for _ in range(2):
            (found,) = runner.summaries(draws, x, lambda outputs: {"outputs": outputs})
            torch.testing.assert_close(found["outputs"], wanted)


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_an_error_of_the_network_stays_its_own(method: Any) -> None:
    model, x = branching()
    runner = Runner(model, None, method, 2**28)
    with torch.no_grad(), runner.ready(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(runner.summaries(MeanField(model).sample(5), x[:, :2], lambda outputs: {"outputs": outputs}))


@pytest.mark.parametrize("method", ["auto", "loop", "vmap"])
def test_outputs_that_the_likelihood_does_not_take_are_refused(method: Any) -> None:
    """One number for each row is no row of class scores."""
    net = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6)
    with pytest.raises(ValueError, match=r"Categorical"):
        predict(model, MeanField(model), torch.randn(6, 3), 5, method=method)


@pytest.mark.parametrize("method", ["auto", "loop", "vmap"])
def test_a_last_batch_of_one_row_is_looked_at_too(method: Any) -> None:
    """Its outputs [2] would be taken for two rows."""

    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).squeeze()

    likelihood = likelihoods.Bernoulli()
    model = SupervisedModel(Squeezing(), likelihood, dist.Normal(0.0, 1.0), num_data=6)
    with pytest.raises(ValueError, match=r"^net: it returned outputs of shape \[2\] for one row"):
        predict(model, MeanField(model), [torch.randn(4, 3), torch.randn(1, 3)], 5, method=method)
