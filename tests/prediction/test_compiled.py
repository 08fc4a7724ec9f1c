"""Compiled networks: the same numbers, one graph whatever the last batch, and a warning where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyrobnn import likelihoods
from pyrobnn.core import compilation
from pyrobnn.guides import MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict

K = 3
needs_compiler = pytest.mark.skipif(
    not compilation.has_compiler(torch.device("cpu")), reason="there is no C++ compiler"
)


class Counting(nn.Module):
    """Two layers with batch statistics, and how often its Python code ran."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.between, self.runs = between, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.last(self.between(self.norm(self.first(x))))


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """A network that is silently run uncompiled fails the test that expects a graph."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile: the network runs uncompiled")
        yield


def built(*between: Callable[[Tensor], Tensor]) -> tuple[SupervisedModel, Any, MeanField, Tensor]:
    torch.manual_seed(0)
    model = SupervisedModel(Counting(*between), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20)
    return model, model.net.network, MeanField(model, init_scale=0.5), torch.randn(20, 3)


@needs_compiler
def test_the_same_numbers_of_one_graph_for_all_draws_calls_and_batches() -> None:
    """Batches of eight, eight and four: of the latter each draw runs the network itself."""
    model, net, guide, x = built()
    batches: Any = DataLoader(x, batch_size=8)  # type: ignore[arg-type]
    for seed in (1, 2):
        wanted = predict(model, guide, batches, K, method="loop", seed=seed)
        before = net.runs
        found = predict(model, guide, batches, K, compile=True, seed=seed)
        # One more to compare with, and with the first seed one that is recorded.
        assert net.runs - before == K + (2 if seed == 1 else 1)
        for name in ("mean", "total", "aleatoric"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-6)


@needs_compiler
def test_a_network_that_was_changed_is_compiled_anew() -> None:
    model, net, guide, x = built()
    predict(model, guide, x, K, compile=True)
    net.between = torch.relu
    wanted = predict(model, guide, x, K, method="loop", seed=1)
    torch.testing.assert_close(predict(model, guide, x, K, compile=True, seed=1).mean, wanted.mean)


def of_value(h: Tensor) -> Tensor:
    return h if h.sum() > 0 else -h


@pytest.mark.parametrize("case", ["no compiler", "branch", "hooks"])
def test_one_warning_where_it_cannot_be_compiled(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, net, guide, x = built(*([of_value] if case == "branch" else []))
    if case == "no compiler":
        monkeypatch.setattr(compilation, "has_compiler", lambda device: False)
    if case == "hooks":
        net.last.register_forward_hook(lambda *_: None)
    wanted = predict(model, guide, x, K, method="loop", batch_size=8, seed=1)
    with pytest.warns(UserWarning, match="^compile: the network runs uncompiled, because ") as caught:
        found = predict(model, guide, x, K, compile=True, batch_size=8, seed=1)
    assert len(caught) == 1
    torch.testing.assert_close(found.mean, wanted.mean)


def test_vmap_of_a_compiled_network_is_refused() -> None:
    model, _, guide, x = built()
    with pytest.raises(ValueError, match=r"^method: a compiled network takes one draw at a time"):
        predict(model, guide, x, K, compile=True, method="vmap")
