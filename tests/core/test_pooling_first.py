"""Pooling before the ReLU: the same values and gradients, also where windows have ties or no positive number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.core.compilation import record
from pyrobnn.core.pooling_first import pool_first


def with_gradient(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            result = network(leaf * 1.0)
            (gradient,) = torch.autograd.grad((result * torch.arange(result.numel()).view(result.shape)).sum(), leaf)
        return result.detach(), gradient

    return evaluate


def images() -> Tensor:
    """Whole numbers from -3 to 2, so that windows have ties, and some have no positive number."""
    return torch.randint(-3, 3, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_values_and_gradients_are_the_same(inplace: bool, options: dict[str, int]) -> None:
    evaluate = with_gradient(nn.Sequential(nn.ReLU(inplace), nn.MaxPool2d(**options)))
    expected = evaluate(images())
    graph = record(evaluate, [images()]).graph
    assert pool_first(graph) == 1
    for right, found in zip(expected, graph(images()), strict=True):
        assert torch.equal(found, right)


@pytest.mark.parametrize(
    "network",
    [
        lambda x: F.max_pool2d(x.relu(), 2).sum() + x.relu().sum(),
        lambda x: F.max_pool2d(x.tanh(), 2),
        lambda x: F.max_pool2d(torch.where(x > 0, x, 0.1 * x), 2),
        lambda x: (lambda r: F.max_pool2d(r, 2) + F.avg_pool2d(r, 2))(x.relu()),
        lambda x: F.max_unpool2d(*F.max_pool2d(x.relu(), 2, return_indices=True), 2),
    ],
)
def test_other_graphs_give_what_they_gave(network: Callable[[Tensor], Tensor]) -> None:
    evaluate = with_gradient(network)
    graph = record(evaluate, [images()]).graph
    pool_first(graph)
    for right, found in zip(evaluate(images()), graph(images()), strict=True):
        assert torch.equal(found, right)


def test_a_result_that_is_used_twice_is_left_alone() -> None:
    def twice(x: Tensor) -> tuple[Tensor]:
        hidden = x.relu()
        return (F.max_pool2d(hidden, 2) + F.avg_pool2d(hidden, 2),)

    assert pool_first(record(twice, [images()]).graph) == 0


def test_without_gradients() -> None:
    graph = record(lambda x: (F.max_pool2d(x.relu(), 2),), [images()]).graph
    assert pool_first(graph) == 1
    assert torch.equal(graph(images())[0], F.max_pool2d(images().relu(), 2))
