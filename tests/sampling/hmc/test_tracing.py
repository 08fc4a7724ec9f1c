"""Recorded graphs compute what the function computes, with constants folded and writing in place made safe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrobnn.sampling.hmc.tracing import DIRECT, FUSIBLE, trace

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
    graph = trace(products, x, decompositions=FUSIBLE)
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


def test_constants_repeat_nothing() -> None:
    table = torch.arange(3.0)
    graph = trace(lambda x: x.unsqueeze(-1) * table.expand(1000, 3), torch.ones(1000))
    assert graph is not None
    (constant,) = graph.buffers()
    assert constant.shape == (1000, 3) and constant.untyped_storage().nbytes() == 12
    torch.testing.assert_close(graph(torch.full((1000,), 2.0)), 2.0 * table.expand(1000, 3))


def test_graphs_can_be_vectorized_whatever_the_strides() -> None:
    def function(x: Tensor) -> Tensor:
        return (x @ torch.ones(3, 3)).reshape(-1).cumsum(0)

    graph = trace(function, torch.ones(2, 3), vectorizable=True)
    assert graph is not None
    batch = torch.randn(2, 3, 5)
    known = torch.stack([function(batch[..., index]) for index in range(5)])
    torch.testing.assert_close(torch.func.vmap(graph, in_dims=-1)(batch), known)


def test_gradients_of_writing_in_place() -> None:
    def value(x: Tensor) -> Tensor:
        out = x.new_zeros(3)
        out[:2] = x.square()
        out[1] *= x[0]
        return out.sum()

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.grad(value(x.requires_grad_()), x)[0]

    graph = trace(gradient, torch.ones(2))
    assert graph is not None
    x = torch.tensor([2.0, 3.0])  # x0^2 + x1^2 x0
    torch.testing.assert_close(graph(x), torch.tensor([2 * 2.0 + 9.0, 2 * 3.0 * 2.0]))


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


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
    ],
)
def test_a_function_that_asks_for_values_is_not_recorded(function: object) -> None:
    assert trace(function, torch.ones(2)) is None  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- simplification

_A, _B, _V = torch.randn(2, 3), torch.randn(3, 2), torch.randn(3)
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "_unsafe_view": (_A, [6]),
    "add": (_A, _A),
    "addmm": (_V, _B, _A),
    "bmm": (_A[None], _B[None]),
    "cat": ([_V, _V],),
    "div": (_A, _A),
    "dot": (_V, _V),
    "expand": (_V, [2, 3]),
    "mm": (_A, _B),
    "mul.Scalar": (_A, 2.0),
    "mul.Tensor": (_A, _A),
    "pow": (_A, 2),
    "rsub": (_A, 1.0),
    "split_with_sizes": (_V, [1, 2], -1),
    "sub": (_A, _A),
    "sum.dim_IntList": (_A, [0], True),
    "transpose": (_A, 0, 1),
    "unsqueeze": (_A, 0),
    "view": (_A, [6]),
}
"""Arguments of operators by (the beginning of) their names; those of the others are one matrix."""


@pytest.mark.parametrize("operator", DIRECT, ids=str)
def test_direct_functions_are_their_operators(operator: Any) -> None:
    """The function dispatches to the operator that it replaces, with the arguments that the graph gives it."""
    full = str(operator).removeprefix("aten.")
    arguments = EXAMPLES.get(full) or EXAMPLES.get(full.partition(".")[0], (_A,))
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Record():
        found = DIRECT[operator](*arguments)
    others = ("aten.mul.Scalar", "aten.rsub.Scalar", "aten._unsafe_view.default")  # as tensors, or safely: the same
    assert seen[:1] == [operator] or str(operator) in others
    torch.testing.assert_close(found, operator(*arguments), rtol=0, atol=0, equal_nan=True)


def test_what_is_computed_twice_is_computed_once() -> None:
    def function(x: Tensor) -> Tensor:
        return x.tanh() * x.tanh() + x.t().t().exp()

    recorded = trace(function, _A)
    assert recorded is not None
    names = [node.target for node in recorded.graph.nodes if node.op == "call_function"]
    assert names.count(torch.tanh) == 1
    assert torch.t not in names
    torch.testing.assert_close(recorded(_A), function(_A))
    noisy = trace(lambda x: x + torch.randn_like(x) - torch.randn_like(x), _A)
    assert noisy is not None
    assert bool((noisy(_A) != _A).any())  # two draws are not one
