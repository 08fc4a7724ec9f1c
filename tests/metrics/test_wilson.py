"""Wilson's interval against scipy's."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from pyrobnn.metrics import wilson_interval


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_it_is_scipys(level: float) -> None:
    counts, successes = torch.tensor([1, 5, 40, 40]), torch.tensor([1, 2, 0, 40])
    low, high = wilson_interval(successes / counts, counts, level)
    for k, (n, s) in enumerate(zip(counts.tolist(), successes.tolist(), strict=True)):
        expected = stats.binomtest(s, n).proportion_ci(level, method="wilson")
        assert (float(low[k]), float(high[k])) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_nothing_observed_has_no_interval() -> None:
    low, high = wilson_interval(torch.tensor([torch.nan]), torch.tensor([0]))
    assert bool(low.isnan()) and bool(high.isnan())
    with pytest.raises(ValueError, match="level"):
        wilson_interval(torch.tensor([0.5]), torch.tensor([3]), 1.0)


def test_what_are_no_shares_or_counts_is_refused() -> None:
    for share in (1.2, -0.1):
        with pytest.raises(ValueError, match="share: expected shares from 0 to 1"):
            wilson_interval(torch.tensor([0.5, share]), torch.tensor([3, 3]))
    with pytest.raises(ValueError, match="count: expected numbers of at least 0, got -3"):
        wilson_interval(torch.tensor([0.5]), torch.tensor([-3]))
