"""Standard normals of the compiled library: torch's numbers and state, and torch itself where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pyrobnn.core import standard_normals as module
from pyrobnn.core.shared_library import CompilerError
from pyrobnn.core.standard_normals import fill_standard_normals
from tests.core.test_shared_library import needs_gcc

SIZE = 2**14


@pytest.fixture
def afresh() -> Iterator[None]:
    """The library is looked for again, before and after."""
    module._library.cache_clear()
    yield
    module._library.cache_clear()


def both(values: Tensor, seed: int = 0, before: int = 0) -> tuple[Tensor, Tensor, torch.Generator, torch.Generator]:
    """Ours and torch's numbers and the generators after them, from ``before`` numbers after the seed on."""
    ours, torchs = (torch.Generator().manual_seed(seed) for _ in range(2))
    for generator in (ours, torchs):
        torch.empty(before, dtype=torch.int64).random_(generator=generator)
    expected = torch.empty_like(values).normal_(generator=torchs)
    return fill_standard_normals(torch.empty_like(values), ours), expected, ours, torchs


@needs_gcc
def test_torchs_generator_is_what_the_library_takes_it_for() -> None:
    """Fails when torch changes its generator or its way from there to normals; ``normal_`` is then called instead."""
    assert module._library() is not None


@needs_gcc
@pytest.mark.parametrize("size", [SIZE, SIZE + 1, SIZE + 15, 5 * SIZE + 624])
@pytest.mark.parametrize("before", [0, 1, 311, 312, 313])
def test_numbers_and_state_are_torchs(size: int, before: int) -> None:
    """From both ends of a block of the generator's and from within it, at sizes with and without a rest of sixteen."""
    found, expected, ours, torchs = both(torch.empty(size), seed=size, before=before)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=4e-6)
    assert torch.equal(ours.get_state(), torchs.get_state())
    torch.testing.assert_close(torch.randn(7, generator=ours), torch.randn(7, generator=torchs), rtol=0.0, atol=0.0)


@needs_gcc
def test_a_large_sample_is_torchs() -> None:
    """Two million numbers: the largest are from uniform numbers next to one, where a logarithm loses most."""
    found, expected, _, _ = both(torch.empty(2**21), seed=3)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=4e-6)
    assert found.abs().max() > 4.5


@pytest.mark.parametrize(
    "values",
    [
        torch.empty(SIZE, dtype=torch.float64),
        torch.empty(SIZE, dtype=torch.bfloat16),
        torch.empty(2, SIZE).mT,
        torch.empty(SIZE - 1),
        torch.empty(3),
        torch.empty(0),
    ],
    ids=["float64", "bfloat16", "transposed", "smaller", "three", "none"],
)
def test_what_the_library_does_not_take_is_torchs_own(values: Tensor) -> None:
    found, expected, ours, torchs = both(values)
    assert torch.equal(found, expected)
    assert torch.equal(ours.get_state(), torchs.get_state())


def test_it_is_a_change_in_place() -> None:
    values, generator = torch.zeros(2, SIZE), torch.Generator().manual_seed(0)
    version = values._version
    assert fill_standard_normals(values, generator) is values
    assert values._version == version + 1
    weight = torch.ones(SIZE, requires_grad=True)
    product = weight * values[0]
    fill_standard_normals(values, generator)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_a_slice_leaves_its_neighbors_alone() -> None:
    values = torch.full((3, SIZE + 5), 7.0)
    fill_standard_normals(values[1], torch.Generator().manual_seed(0))
    assert (values[[0, 2]] == 7.0).all()
    assert (values[1] != 7.0).all()


@needs_gcc
@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("change", [("0x9908b0dfu", "0x9908b0deu"), ("625 - engine.next", "624 - engine.next")])
def test_a_library_that_disagrees_is_not_used(change: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch had another generator, or another layout of its state."""
    assert change[0] in module._SOURCE
    monkeypatch.setattr(module, "_SOURCE", module._SOURCE.replace(*change))
    assert module._library() is None
    found, expected, _, _ = both(torch.empty(SIZE))
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("error", [CompilerError("none"), OSError("cannot be loaded")])
def test_without_a_compiler_numbers_are_torchs(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: str) -> None:
        raise error

    monkeypatch.setattr(module, "shared_library", fails)
    found, expected, _, _ = both(torch.empty(SIZE))
    assert torch.equal(found, expected)


@pytest.mark.statistical
def test_moments_and_correlations() -> None:
    """A million numbers: four moments, and products of numbers 1, 8 and 16 apart, within 5 standard errors."""
    values = fill_standard_normals(torch.empty(2**20), torch.Generator().manual_seed(1)).double()
    for power, mean, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(float((values**power).mean()) - mean) < 5 * (variance / len(values)) ** 0.5
    for lag in (1, 8, 16):
        for part in (values, values.square() - 1.0):
            spread = (part[lag:] * part[:-lag]).std() / len(values) ** 0.5
            assert abs(float((part[lag:] * part[:-lag]).mean())) < 5 * float(spread)
