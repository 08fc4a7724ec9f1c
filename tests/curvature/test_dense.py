"""A full matrix that is factored when it is needed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrobnn.curvature import DenseBlock


def block_of(curvature: Tensor, precision: Tensor, dtype: torch.dtype = torch.float64) -> DenseBlock:
    block = DenseBlock(torch.arange(len(curvature)), torch.zeros(1, dtype=dtype))
    block.set(curvature, precision)
    return block


def few_directions(size: int, count: int) -> Tensor:
    """Curvature that knows nothing of most directions, as that of few data."""
    torch.manual_seed(1)
    rows = torch.randn(count, size).double()
    return rows.T @ rows


CHANGES: dict[str, Callable[[DenseBlock], DenseBlock]] = {
    "another multiplier": lambda block: block.multiplier.fill_(0.1) and block,
    "another matrix": lambda block: block.set(few_directions(5, 3), torch.ones(5)) or block,
    "a state dict": lambda block: (
        block.load_state_dict(block_of(few_directions(5, 1), torch.ones(5)).state_dict()) and block
    ),
    "another precision": lambda block: block.float(),
    "a copy": copy.deepcopy,
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_factored_again_when_something_changed(name: str) -> None:
    block = block_of(few_directions(5, 2), torch.full((5,), 2.0))
    block.variances(), block.log_det()
    block = CHANGES[name](block)
    whole = block.curvature.double() + float(block.multiplier) * torch.eye(5)
    scale = block.prior_scale.double()
    expected = torch.linalg.inv(whole).diagonal() * scale.square()
    torch.testing.assert_close(block.variances(), expected.to(block.prior_scale))
    assert float(block.log_det()) == pytest.approx(float(torch.logdet(whole) - 2 * scale.log().sum()), rel=1e-6)


def test_only_the_lower_triangle_counts() -> None:
    curvature, precision = few_directions(5, 3), torch.rand(5).double() + 0.5
    whole, half = block_of(curvature, precision), block_of(curvature.tril() + torch.ones(5, 5).triu(1), precision)
    torch.testing.assert_close(whole.variances(), half.variances())
    torch.testing.assert_close(whole.spectrum(), half.spectrum())
    assert whole.log_det() == half.log_det()


def test_a_multiplier_below_the_rounding_errors_of_the_curvature() -> None:
    """Curvature 1e12 in two directions, nothing in 28: variance 1e8 in those, 1e-12 in the two."""
    axes = torch.linalg.qr(few_directions(30, 30)).Q
    block = block_of(1e12 * axes[:2].T @ axes[:2], torch.ones(30))
    block.multiplier.fill_(1e-8)
    variances = block.half_covariance(axes).square().sum(-1)
    torch.testing.assert_close(variances, torch.tensor([1e-12] * 2 + [1e8] * 28).double(), rtol=1e-2, atol=0.0)
    assert float(block.log_det()) == pytest.approx(2 * 27.63102 - 28 * 18.42068, rel=1e-4)


def test_single_precision_keeps_what_the_data_leave_open() -> None:
    """Data of weight 1e7 beside a prior of 1, where a matrix in single precision would know its sum to 1."""
    curvature, precision = 1e7 * few_directions(40, 10), torch.ones(40)
    exact = torch.linalg.inv(curvature + torch.eye(40).double())
    block = block_of(curvature, precision, torch.float32)
    torch.testing.assert_close(block.variances(), exact.diagonal().float(), rtol=1e-3, atol=0.0)
    half = block.half_covariance(few_directions(40, 10)[:3].float())
    known = few_directions(40, 10)[:3] @ exact @ few_directions(40, 10)[:3].T
    torch.testing.assert_close(half @ half.mT, known.float(), rtol=5e-3, atol=1e-9)


def test_a_first_use_under_inference_mode_leaves_ordinary_tensors() -> None:
    block = block_of(few_directions(4, 2), torch.ones(4))
    with torch.inference_mode():
        block.variances()
    rows = torch.eye(4, requires_grad=True, dtype=torch.float64)
    block.half_covariance(rows).square().sum().backward()
    torch.testing.assert_close(rows.grad.diagonal(), 2.0 * block.variances())
