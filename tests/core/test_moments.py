"""Running moments equal two-pass formulas, however the rows are cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrobnn.core.moments import RunningMoments, add_rows


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 1000), st.floats(-1e6, 1e6))
def test_two_pass_formulas(sizes: list[int], seed: int, offset: float) -> None:
    """To rounding of numbers of the offset's size, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 2, 3, dtype=torch.float64, generator=generator) + offset
    moments = RunningMoments()
    for block in rows.split(sizes):
        moments.add(block)
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    for correction in (0, 1):
        expected = (rows - rows.mean(0)).square().sum(0) / max(len(rows) - correction, 1)
        torch.testing.assert_close(moments.variance(correction), expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(moments.std(correction), expected.sqrt(), rtol=1e-8, atol=1e-4)


@pytest.mark.parametrize("block", [1, 50])
def test_a_large_mean_does_not_cancel(block: int) -> None:
    """Float32 rows around 1e4 with a standard deviation of 1, where the difference of moments has no digit left."""
    rows = 1e4 + torch.randn(2_000, 4, generator=torch.Generator().manual_seed(1))
    expected = rows.double().std(0)
    own, double = RunningMoments(), RunningMoments(torch.float64)
    for part in rows.split(block):
        own.add(part)
        double.add(part)
    assert own.mean.dtype == torch.float32 and double.mean.dtype == double.std().dtype == torch.float64
    torch.testing.assert_close(own.std().double(), expected, rtol=1e-2, atol=0)
    torch.testing.assert_close(double.std(), expected, rtol=1e-10, atol=0)
    canceled = (rows.square().mean(0) - rows.mean(0).square()).double()
    assert float((canceled - expected.square()).abs().max()) > 0.1


def test_rows_that_are_alike_have_no_variance_and_are_not_changed() -> None:
    rows = torch.full((7, 3), 0.1, requires_grad=True)
    before = rows.detach().clone()
    moments = RunningMoments()
    for part in rows.split(1):
        moments.add(part)
    assert torch.equal(moments.variance(), torch.zeros(3)) and not moments.variance().requires_grad
    assert torch.equal(rows.detach(), before)


def test_tensors_of_the_callers_own() -> None:
    """The in-place form, on views of a larger tensor."""
    rows = torch.randn(6, 4, dtype=torch.float64)
    whole = torch.zeros(2, 4, dtype=torch.float64)
    count = add_rows(0, whole[0], whole[1], rows[:1])
    count = add_rows(count, whole[0], whole[1], rows[1:])
    assert count == 6
    torch.testing.assert_close(whole[0], rows.mean(0))
    torch.testing.assert_close(whole[1], (rows - rows.mean(0)).square().sum(0))
