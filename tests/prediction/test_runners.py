"""Networks that vmap cannot run: refused by name where it was requested, else run draw by draw with one warning."""

from __future__ import annotations

import warnings

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


def test_without_a_wish_it_is_run_draw_by_draw_with_one_warning() -> None:
    """``"auto"`` where vmap is the faster, as on a GPU."""
    model, x = branching()
    draws = MeanField(model, init_scale=1.0).sample(6)
    runner = Runner(model, None, "auto", 2**28)
    runner.method = "vmap"
    with torch.no_grad(), runner.ready():
        with pytest.warns(UserWarning, match=r"torch cannot vmap this network .*one by one"):
            (found,) = runner.summaries(draws, x, lambda outputs: {"outputs": outputs})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (again,) = runner.summaries(draws, x, lambda outputs: {"outputs": outputs})
    h = x @ draws["net.layer.weight"].mT + draws["net.layer.bias"].unsqueeze(1)
    wanted = torch.where(h.sum((1, 2), keepdim=True) > 0, h, -2 * h)
    torch.testing.assert_close(found["outputs"], wanted)
    torch.testing.assert_close(again["outputs"], wanted)


def test_an_error_of_the_network_stays_its_own() -> None:
    model, x = branching()
    runner = Runner(model, None, "auto", 2**28)
    runner.method = "vmap"
    with torch.no_grad(), runner.ready(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            list(runner.summaries(MeanField(model).sample(2), x[:, :2], lambda outputs: {"outputs": outputs}))
