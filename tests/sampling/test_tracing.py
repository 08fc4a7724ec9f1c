"""Recorded graphs compute what the function computes, with constants folded and writing in place made safe."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyrobnn.sampling.tracing import trace

SCALE = torch.tensor([0.5, 2.0, 3.0])


def quadratic(x: Tensor) -> Tensor:
    return (x**2 / (2 * SCALE**2) + SCALE.log()).sum()


def operations(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@given(st.integers(0, 1000))
def test_a_graph_gives_what_the_function_gives_at_any_input(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    graph = trace(torch.func.grad_and_value(quadratic), torch.zeros(3))
    assert graph is not None
    x = torch.randn(3, generator=generator)
    gradient, value = graph(x)
    torch.testing.assert_close(gradient, x / SCALE**2)
    torch.testing.assert_close(value, quadratic(x))


def test_what_does_not_depend_on_the_input_is_computed_once() -> None:
    graph = trace(quadratic, torch.zeros(3))
    assert graph is not None
    assert not any("log" in name for name in operations(graph))
    assert sum("pow" in name for name in operations(graph)) == 1


def test_operations_of_several_results_are_folded_too() -> None:
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    graph = trace(lambda x: torch.linalg.eigh(matrix)[0] * x, torch.ones(2))
    assert graph is not None
    assert len(operations(graph)) == 1
    torch.testing.assert_close(graph(torch.ones(2)), torch.linalg.eigvalsh(matrix))


def test_products_with_vectors_can_be_written_as_sums() -> None:
    def products(x: Tensor) -> tuple[Tensor, ...]:
        column, row, matrix = x[:, :1], x[:1], x + 1.0
        batch = x.expand(2, 3, 3)
        affine = torch.addmm(x[0], matrix, matrix), torch.addmm(x[0, :1], matrix, column)
        return column @ row, row @ matrix, matrix @ column, matrix @ matrix, batch @ batch[..., :1], *affine

    x = torch.arange(9.0).reshape(3, 3)
    graph = trace(products, x, fusible=True)
    assert graph is not None
    for ours, known in zip(graph(x), products(x), strict=True):
        torch.testing.assert_close(ours, known)
    assert sum("mm" in name for name in operations(graph)) == 2  # of two matrices


def test_constants_are_of_the_time_of_recording() -> None:
    scale = torch.tensor(2.0)
    graph = trace(lambda x: x * scale.square(), torch.ones(2))
    assert graph is not None
    scale.fill_(5.0)
    assert graph(torch.ones(2)).tolist() == [4.0, 4.0]


def test_writing_in_place_does_not_write_into_a_constant() -> None:
    def filled(x: Tensor) -> Tensor:
        out = torch.zeros(4)
        out[1:3] = x
        out.mul_(2.0)
        return out + out.flip(0)

    graph = trace(filled, torch.ones(2))
    assert graph is not None
    for x in (torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 5.0])):
        torch.testing.assert_close(graph(x), filled(x))
    torch.testing.assert_close(graph(torch.tensor([1.0, 2.0])), filled(torch.tensor([1.0, 2.0])))


def test_powers_of_one_and_views_of_the_same_shape_go_away() -> None:
    graph = trace(lambda x: x.reshape(3).expand(3).pow(1.0) + 1.0, torch.ones(3))
    assert graph is not None
    assert len(operations(graph)) == 1


@pytest.mark.parametrize("function", [lambda x: x if x.sum() > 0 else -x, lambda x: x * x.sum().item()])
def test_a_function_that_asks_for_values_is_not_recorded(function: object) -> None:
    assert trace(function, torch.ones(2)) is None  # type: ignore[arg-type]
