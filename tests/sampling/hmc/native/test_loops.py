"""Loops of views, sums, products and concatenations, against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyrobnn.sampling.hmc.native.loops import Loops
from pyrobnn.sampling.hmc.native.operators import DECOMPOSITIONS
from pyrobnn.sampling.hmc.native.values import NotExpressibleError
from pyrobnn.sampling.hmc.tracing import trace
from tests.core.test_shared_library import needs_gcc
from tests.sampling.hmc.native.programs import assert_computed

pytestmark = needs_gcc


def test_views_of_what_is_stored_and_of_formulas() -> None:
    def function(flat: Tensor) -> list[Tensor]:
        results = []
        for x in (flat.view(4, 3, 2), flat.view(4, 3, 2) * 2.0, flat.tanh().view(4, 3, 2)):
            results += [
                x.transpose(0, 2) + 1.0,
                x.permute(2, 0, 1) * x.permute(2, 0, 1),
                x[1] + x[2],
                x[1:3, :, 1] * 2.0,
                x[:, ::2] + 1.0,
                x.diagonal(0, 0, 1) + 1.0,
                x.reshape(6, 4).t() + x.reshape(4, 6).unsqueeze(0).squeeze(0)[:1],
                x.transpose(0, 1).reshape(-1) + 1.0,
                torch.stack(x.unbind(1)).sum(0),
                x[:, :1].expand(4, 3, 2) * x,
                x.unsqueeze(-1) * x.unsqueeze(-2),
                x.select(0, 3).split([1, 2], 0)[1] + 1.0,
            ]
        return results

    assert_computed(function, torch.randn(24))


def test_sums_and_maxima_over_any_dimensions() -> None:
    def function(flat: Tensor) -> list[Tensor]:
        x = flat.view(4, 3, 5, 1)
        results = [x.sum(), x.transpose(0, 2).sum(), (x * x).exp().sum()]
        for dims in ([0], [1], [2], [3], [-1], [0, 1], [0, 2], [1, 2], [0, 1, 2], [0, 3], [0, 1, 2, 3]):
            for keepdim in (False, True):
                results += [x.sum(dims, keepdim), (x.transpose(0, 2) * 2.0).sum(dims, keepdim), x.amax(dims, keepdim)]
        return results

    assert_computed(function, torch.randn(60))


def test_maxima_pass_on_what_is_no_number() -> None:
    assert_computed(
        lambda x: [x.view(2, 3).amax(0), x.view(2, 3).amax(1), x.amax(0)],
        torch.tensor([1.0, torch.nan, 2.0, 3.0, 4.0, -torch.inf]),
    )


@settings(max_examples=12)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from(["f4", "f8"]))
def test_products_of_matrices(rows: int, inner: int, columns: int, transposed: bool, kind: str) -> None:
    def function(flat: Tensor) -> list[Tensor]:
        a = flat[: rows * inner].view(rows, inner)
        b = flat[rows * inner : (rows + columns) * inner]
        b = b.view(columns, inner).t() if transposed else b.view(inner, columns)
        c = a.tanh() @ b
        return [c, c + 1.0, c.t() @ a, (c @ b.t()).sum(0), torch.addmm(flat[:columns], a, b), a @ flat[:inner]]

    torch.manual_seed(rows)
    size = max((rows + columns) * inner, columns)
    assert_computed(function, torch.randn(size, dtype=torch.float32 if kind == "f4" else torch.float64))


def test_batched_products() -> None:
    def function(flat: Tensor) -> list[Tensor]:
        a, b = flat.view(2, 3, 4), flat.view(2, 4, 3)
        return [torch.bmm(a, b), torch.baddbmm(a[:, :, :1], a, b), torch.bmm(a[:, :1], b), torch.bmm(a, b[..., :1])]

    assert_computed(function, torch.randn(24))


def test_concatenations_and_gradients_of_views() -> None:
    def function(flat: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaf = flat.detach().requires_grad_()
            x = leaf.view(4, 6)
            parts = torch.cat([x[:, 1:3], x[:, ::2] * 2.0], 1), torch.cat([x[:2], x[2:] * x[:2]])
            total = parts[0].square().sum() + parts[1].exp().sum() + x[2].square().sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        return [gradient, torch.cat([flat, flat.exp()])]

    assert_computed(function, torch.randn(24))


def test_long_formulas_are_cut_and_what_is_used_often_is_stored() -> None:
    def function(x: Tensor) -> list[Tensor]:
        y = x
        for step in range(100):
            y = y * 0.9 + x * step * 1e-3
        z = x.view(6, 4).exp()
        return [y, z.sum(0), z.sum(1), z * z]

    assert_computed(function, torch.randn(24))


def test_what_no_loops_exist_for_is_told() -> None:
    def loops(function: object, x: Tensor) -> Loops:
        graph = trace(function, x, decompositions=DECOMPOSITIONS)  # type: ignore[arg-type]
        assert graph is not None
        return Loops(graph, "q", ("value", "gradient"))

    for function, x, message in (
        (lambda x: (x.cumsum(0), x), torch.ones(3), "aten.cumsum.default"),
        (lambda x: (x.sum(), x), torch.ones(3, dtype=torch.float16), "torch.float16"),
        (lambda x: (x.half().sum(), x), torch.ones(3), "torch.float16"),
        (lambda x: (x[:0].sum(), x), torch.ones(3), r"shape \(0,\)"),
        (lambda x: (x.topk(2)[0].sum(), x), torch.ones(3), "aten.topk.default"),
        (lambda x: (x.sum() + torch.randn(()), x), torch.ones(3), "aten.randn.default"),
        (lambda x: ((x.expand(2**12, 2**12) @ x.unsqueeze(1).expand(2**12, 2)).sum(), x), torch.ones(2**12), "library"),
    ):
        with pytest.raises(NotExpressibleError, match=message):
            loops(function, x)
