"""Which networks run all draws in one call without being asked, and that they predict as draw by draw."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import Prediction, predict

K = 8


class Counting(nn.Module):
    """Two layers with something between them, and the number of its runs."""

    def __init__(self, between: Callable[[Counting, Tensor], Tensor] = lambda net, h: h.tanh()) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.between = between
        self.runs = 0
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.last(self.between(self, self.norm(self.first(x))))


def counting(*between: Callable[[Counting, Tensor], Tensor]) -> tuple[SupervisedModel, Counting, Any, Tensor]:
    """A model, its copy of the network, K draws and inputs."""
    torch.manual_seed(0)
    model = SupervisedModel(Counting(*between), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5)
    net: Any = model.net.network
    net.norm.running_mean.normal_()
    return model, net, MeanField(model, init_scale=0.5).sample(K), torch.randn(5, 3)


def runs_of(net: Counting, run: Callable[[], Any]) -> int:
    before = net.runs
    run()
    return net.runs - before


def assert_equal(found: Prediction, wanted: Prediction) -> None:
    for name in ("mean", "total", "aleatoric", "epistemic", "variation_ratio"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-6)


def test_a_small_network_runs_once_for_all_draws_with_the_same_result() -> None:
    model, net, draws, x = counting()
    statistics = net.norm.running_mean.clone()
    found = predict(model, draws, x, K)
    assert_equal(found, predict(model, draws, x, K, method="loop"))
    assert runs_of(net, lambda: predict(model, draws, x, K)) == 1
    assert torch.equal(net.norm.running_mean, statistics)


def test_calls_with_one_seed_are_equal_bit_for_bit_from_the_first_one_on() -> None:
    model, _, _, x = counting()
    guide = MeanField(model, init_scale=0.5)
    state = torch.get_rng_state()
    first, second, third = (predict(model, guide, x, K, seed=3).mean for _ in range(3))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("keep", [lambda h: h, lambda h: [h], lambda h: {"h": (h,)}], ids=["tensor", "list", "dict"])
def test_modules_that_keep_tensors_keep_those_of_the_last_draw(keep: Any) -> None:
    def between(net: Counting, h: Tensor) -> Tensor:
        net.kept = keep(h)
        return h

    model, net, draws, x = counting(between)
    for _ in range(2):
        assert runs_of(net, lambda: predict(model, draws, x, K)) >= K
        value = {Tensor: lambda k: k, list: lambda k: k[0], dict: lambda k: k["h"][0]}[type(net.kept)](net.kept)
        wanted = net.norm.eval()(F.linear(x, draws["net.first.weight"][-1], draws["net.first.bias"][-1]))
        torch.testing.assert_close(value, wanted)


def test_a_buffer_that_is_written_in_place_is_one_of_the_last_draw() -> None:
    def between(net: Counting, h: Tensor) -> Tensor:
        net.kept.copy_(h.detach())
        return h

    model, net, draws, x = counting(between)
    net.kept = torch.zeros(5, 4)
    predict(model, draws, x, K)
    wanted = net.norm.eval()(F.linear(x, draws["net.first.weight"][-1], draws["net.first.bias"][-1]))
    torch.testing.assert_close(net.kept, wanted)


@pytest.mark.parametrize(
    "noise",
    [lambda h: F.dropout(h, 0.5, training=True), lambda h: h * random.random(), lambda h: h * np.random.rand()],  # noqa: NPY002
    ids=["torch", "python", "numpy"],
)
def test_networks_that_draw_random_numbers_draw_them_anew_for_each_draw(noise: Any) -> None:
    """And from the state that they find, whichever call is the first."""
    model, net, draws, x = counting(lambda _, h: noise(h))
    means = []
    for method in ("auto", "loop", "auto"):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        means.append(predict(model, draws, x, K, method=method).mean)  # type: ignore[arg-type]
    assert torch.equal(means[0], means[1])
    assert torch.equal(means[2], means[1])
    assert runs_of(net, lambda: predict(model, draws, x, K)) == K


def test_hooks_see_each_draw() -> None:
    model, net, draws, x = counting()
    predict(model, draws, x, K)
    seen: list[Tensor] = []
    net.last.register_forward_hook(lambda module, args, output: seen.append(output))
    predict(model, draws, x, K)
    assert [tuple(output.shape) for output in seen] == [(5, 2)] * K
    wanted = predict(model, draws, x, K, return_draws=True).draws
    torch.testing.assert_close(torch.stack(seen[:K]).softmax(-1), wanted)


@pytest.mark.parametrize(
    "between",
    [
        lambda net, h: h if h.sum() > 0 else -h,
        lambda net, h: h * float(h.mean()),
        lambda net, h: torch.as_tensor(h.numpy()),
        lambda net, h: h.renorm(2, 0, 1.0),  # torch would loop, with a warning
        lambda net, h: h + 0 * torch.zeros(5, 4).add_(h),  # a batched tensor into one that is not
    ],
    ids=["branch", "number", "numpy", "no rule", "in place"],
)
def test_what_torch_cannot_vmap_runs_draw_by_draw_without_a_word(between: Any) -> None:
    model, net, draws, x = counting(between)
    found = predict(model, draws, x, K)
    wanted = predict(model, draws, x, K, method="loop")
    assert torch.equal(found.mean, wanted.mean)
    assert runs_of(net, lambda: predict(model, draws, x, K)) == K, "it is not tried again"
    assert torch.equal(predict(model, draws, x, K).mean, wanted.mean)


@pytest.mark.parametrize("case", ["few draws", "large", "half", "autocast", "cell"])
def test_draw_by_draw_where_that_is_faster_or_more_exact(case: str) -> None:
    model, net, draws, x = counting(*([lambda net, h: net.cell(h)] if case == "cell" else []))
    count = 3 if case == "few draws" else K
    if case == "large":
        x = torch.randn(200_000 // 12, 3)
    if case == "half":
        model, x = model.bfloat16(), x.bfloat16()
        draws = {name: value.bfloat16() for name, value in draws.items()}
    if case == "cell":
        net.cell = nn.GRUCell(4, 4).requires_grad_(False)
    with torch.autocast("cpu", enabled=case == "autocast"):
        predict(model, draws, x, count)
        runs = runs_of(net, lambda: predict(model, draws, x, count))
    assert runs >= count


@pytest.mark.parametrize(("rows", "runs"), [(1, 1), (2, K)])
def test_linear_layers_that_see_several_sequences_run_draw_by_draw(rows: int, runs: int) -> None:
    """One call would copy the weights of all draws for each sequence."""
    model, net, draws, _ = counting(lambda net, h: h.reshape(rows, 3, 4))
    x = torch.randn(3 * rows, 3)
    predict(model, draws, x, K)
    assert runs_of(net, lambda: predict(model, draws, x, K)) == runs


def test_inputs_by_name_and_with_plain_numbers() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, mask: Tensor, factor: float = 1.0) -> Tensor:
            return self.layer(x * mask) * factor

    torch.manual_seed(0)
    model = SupervisedModel(Scaled(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5)
    draws, x, mask = MeanField(model, init_scale=0.5).sample(K), torch.randn(4, 3), torch.ones(4, 1)
    for data in ({"x": x, "mask": mask}, {"x": x, "mask": mask, "factor": 2.0}, (x, mask)):
        factor = data.get("factor", 1.0) if isinstance(data, dict) else 1.0
        wanted = (x @ draws["net.layer.weight"].mT + draws["net.layer.bias"].unsqueeze(1)).mul(factor)
        torch.testing.assert_close(predict(model, draws, data, K).mean, wanted.softmax(-1).mean(0))
