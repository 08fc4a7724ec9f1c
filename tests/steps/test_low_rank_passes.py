"""Passes over a factor, by torch and by loops in C++, against formulas of dense matrices in double precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pyrobnn.core.shared_library import CompilerError
from pyrobnn.steps import low_rank_loops
from pyrobnn.steps.low_rank_loops import CompiledPasses, passes_for
from pyrobnn.steps.low_rank_passes import Columns, LowRankPasses, TorchPasses
from tests.core.test_shared_library import needs_gcc

SHAPES = [(2, 0), (1, 1), (1, 256), (3, 7), (4, 257), (5, 640), (9, 1_000)]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
FIELDS = [field.name for field in dataclasses.fields(Columns)]
KINDS = ["torch", pytest.param("loops", marks=needs_gcc)]


@pytest.fixture(autouse=True, params=["one part", "several"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several, torch works on 100 elements at a time, and three threads share the loops."""
    if request.param == "several":
        monkeypatch.setattr("pyrobnn.steps.low_rank_passes._CHUNK", 100)
        monkeypatch.setattr("pyrobnn.steps.low_rank_passes._LONG_CHUNK", 100)
        monkeypatch.setattr(low_rank_loops, "_WORTH_A_THREAD", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


def passes(kind: str, rank: int, dtype: torch.dtype) -> LowRankPasses:
    return TorchPasses() if kind == "torch" else CompiledPasses(rank, dtype)


def columns(rank: int, size: int, dtype: torch.dtype) -> Columns:
    """Neighbors in longer rows; what is to be written holds NaN."""
    torch.manual_seed(rank + size)
    factor, by_factor = torch.randn(rank, size + 9), torch.full((rank, size + 9), torch.nan)
    loc, noise = torch.randn(2, size + 9)
    deviation, value = torch.full((2, size + 9), torch.nan)
    scale = torch.rand(size + 9) + 0.5
    tensors = (factor, loc, noise, deviation, value, scale, by_factor)
    return Columns(*(tensor.to(dtype) for tensor in tensors)).at(slice(5, size + 5))


def double(*tensors: Tensor) -> Iterator[Tensor]:
    return (tensor.double() for tensor in tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rank", "size"), SHAPES)
def test_forward(kind: str, dtype: torch.dtype, rank: int, size: int) -> None:
    own, weights = columns(rank, size, dtype), torch.randn(rank).to(dtype)
    gram = torch.ones(rank, rank, dtype=torch.float64)
    squares = passes(kind, rank, dtype).forward(own, weights, gram)
    factor, noise, scale, z = double(own.factor, own.noise, own.scale, weights)
    whitened = factor / scale
    found = own.deviation, gram.tril(), squares
    exact = (
        scale * noise + z @ factor,
        (1.0 + whitened @ whitened.T).tril(),
        scale.square().sum() + factor.square().sum(),
    )
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(own.value, own.loc + own.deviation)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rank", "size"), SHAPES)
@pytest.mark.parametrize("by_element", [True, False])
def test_backward(kind: str, dtype: torch.dtype, rank: int, size: int, by_element: bool) -> None:
    own, mixing, weight = columns(rank, size, dtype), torch.randn(rank, rank + 1).to(dtype), 0.3
    own.value.normal_()
    own.deviation.normal_()
    precision = (torch.rand(size if by_element else 1) + 0.5).to(dtype)
    factor, g, deviation, scale = double(own.factor, own.value, own.deviation, own.scale)
    products = mixing.double() @ torch.cat([factor / scale**2, g.unsqueeze(0)])
    by_scale = g * deviation - (factor * products).sum(0) + weight * (precision.double() * scale**2 - 1.0)
    passes(kind, rank, dtype).backward(own, mixing, precision, weight)
    by_factor = products + weight * precision.double() * factor
    for ours, exact in ((own.scale, by_scale), (own.by_factor, by_factor)):
        torch.testing.assert_close(ours.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_neighbors_are_left_alone(kind: str) -> None:
    whole = Columns(*(torch.ones(3, 50) if name in ("factor", "by_factor") else torch.ones(50) for name in FIELDS))
    own, run = whole.at(slice(10, 30)), passes(kind, 3, torch.float32)
    run.forward(own, torch.ones(3), torch.zeros(3, 3, dtype=torch.float64))
    run.backward(own, torch.ones(3, 4), torch.ones(1), 1.0)
    for name in FIELDS:
        assert (getattr(whole, name)[..., :10] == 1.0).all()
        assert (getattr(whole, name)[..., 30:] == 1.0).all()


@needs_gcc
def test_many_columns_lose_no_digits_of_the_gram_matrix() -> None:
    """200,000 elements in single precision, to 1e-6 of its largest entry: sums move to double precision in between."""
    own, gram = columns(2, 200_000, torch.float32), torch.zeros(2, 2, dtype=torch.float64)
    CompiledPasses(2, torch.float32).forward(own, torch.zeros(2), gram)
    whitened = own.factor.double() / own.scale.double()
    torch.testing.assert_close(gram, (whitened @ whitened.T).tril(), rtol=0.0, atol=1e-6 * float(gram.max()))


@needs_gcc
def test_large_factors_have_loops() -> None:
    assert isinstance(passes_for(torch.empty(2, 2**17)), CompiledPasses)
    assert isinstance(passes_for(torch.empty(2, 2**17 - 1)), TorchPasses)
    assert isinstance(passes_for(torch.empty(2, 2**17, dtype=torch.bfloat16)), TorchPasses)
    assert isinstance(passes_for(torch.empty(2, 2**17, device="meta")), TorchPasses)


@pytest.mark.parametrize("error", [CompilerError("none"), OSError("cannot be loaded")])
def test_without_a_compiler_passes_are_torchs(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: str) -> None:
        raise error

    monkeypatch.setattr(low_rank_loops, "shared_library", fails)
    assert isinstance(passes_for(torch.empty(2, 2**17)), TorchPasses)
