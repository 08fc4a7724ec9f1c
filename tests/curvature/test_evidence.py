"""The multiplier of the prior precision that the evidence prefers."""

from __future__ import annotations

import pytest

from pyrobnn.curvature import Block, best_multiplier
from tests.curvature.test_blocks import case, each_kind


def determined(block: Block, multiplier: float) -> float:
    """MacKay's γ: how many directions the data determine."""
    return float((block.spectrum() / (block.spectrum() + multiplier)).sum())


@each_kind
def test_the_best_multiplier_is_mackays_fixed_point(kind: str) -> None:
    block, _, precision = case(kind)
    block.prior_squares.fill_(float((precision * 0.5).sum()))
    multiplier = best_multiplier([block])
    assert 1e-3 < multiplier < 1e3
    assert determined(block, multiplier) / float(block.prior_squares) == pytest.approx(multiplier, rel=1e-6)


def test_without_a_maximum_the_multiplier_stops_at_the_end() -> None:
    block, _, _ = case("diagonal")  # weights at the prior's mean: the narrower the prior the better
    assert best_multiplier([block]) == pytest.approx(1e8, rel=1e-3)


def test_several_blocks_share_one() -> None:
    """MacKay's fixed point with the sums over blocks."""
    blocks = [case(kind)[0] for kind in ("dense", "kronecker")]
    for block, squares in zip(blocks, (3.0, 0.5), strict=True):
        block.prior_squares.fill_(squares)
    multiplier = best_multiplier(blocks)
    gamma = sum(determined(block, multiplier) for block in blocks)
    assert gamma / 3.5 == pytest.approx(multiplier, rel=1e-6)
