"""Coverage as a whole and by part."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pyrobnn.conformal import ConformalRegressor, NormalizedResidual, coverage_of_intervals, coverage_of_sets
from tests.conformance.predictions import normal_prediction

SETS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).bool()
LABELS = torch.tensor([0, 1, 2, 2, 2, 1])


def test_sets_by_hand() -> None:
    report = coverage_of_sets(SETS, LABELS, uncertainty=torch.tensor([1.0, 2.0, 6.0, 5.0, 4.0, 3.0]), bins=2)
    found = {row.part: (row.num_data, row.coverage, row.size) for row in report.rows}
    assert found == {
        "all": (6, pytest.approx(4 / 6), pytest.approx(8 / 6)),
        "class 0": (1, 1.0, 1.0),
        "class 1": (2, 1.0, 1.5),
        "class 2": (3, pytest.approx(1 / 3), pytest.approx(4 / 3)),
        "size 0": (1, 0.0, 0.0),
        "size 1": (3, pytest.approx(2 / 3), 1.0),
        "size 2": (1, 1.0, 2.0),
        "size 3": (1, 1.0, 3.0),
        "uncertainty 1/2": (3, 1.0, pytest.approx(4 / 3)),
        "uncertainty 2/2": (3, pytest.approx(1 / 3), pytest.approx(4 / 3)),
    }
    assert report.least.part == "size 0"
    assert report["class 2"].num_data == 3
    with pytest.raises(KeyError, match="there are 'all', 'class 0'"):
        report["class 7"]
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["part"] == "all"
    assert len(str(report).splitlines()) == 1 + len(report.rows)


def test_the_interval_of_a_share_is_wilsons() -> None:
    """Against scipy, for shares between and at the ends."""
    from scipy.stats import binomtest

    for covered, count in ((3, 10), (0, 7), (7, 7), (450, 500)):
        sets = torch.zeros(count, 2).bool()
        sets[:covered, 0] = True
        row = coverage_of_sets(sets, torch.zeros(count).long())["all"]
        expected = binomtest(covered, count).proportion_ci(0.95, method="wilson")
        assert (row.low, row.high) == (pytest.approx(expected.low, abs=1e-9), pytest.approx(expected.high, abs=1e-9))


def test_it_shows_where_intervals_of_one_length_fail() -> None:
    """4,000 data of noise 0.1 to 2: absolute residuals miss the noisy third, normalized ones do not (z of 5)."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 + 1.9 * torch.rand(8000, generator=generator).double()
    y = noise * torch.randn(8000, generator=generator).double()
    whole = normal_prediction(torch.zeros(1, 8000).double(), noise.unsqueeze(0))
    held_out, new, targets = whole.rows(slice(4000)), whole.rows(slice(4000, 8000)), y[4000:]
    for score, holds in ((None, False), (NormalizedResidual(), True)):
        lower, upper = ConformalRegressor(score).conformalize(held_out, y[:4000]).predict_interval(new)
        report = coverage_of_intervals(lower, upper, targets, uncertainty=new.total, bins=3)
        noisy = report["uncertainty 3/3"]
        error = math.sqrt(0.09 / noisy.num_data + 0.09 / 4000)
        assert (abs(noisy.coverage - 0.9) < 5 * error) == holds
        assert abs(report["all"].coverage - 0.9) < 5 * math.sqrt(2 * 0.09 / 4000)
        assert any(row.part.startswith("length") for row in report.rows) == holds


def test_missing_targets_are_left_out_and_infinite_lengths_are_shown() -> None:
    lower, upper = torch.full((4, 2), -math.inf), torch.full((4, 2), math.inf)
    targets = torch.zeros(4, 2)
    targets[1, 0] = math.nan
    row = coverage_of_intervals(lower, upper, targets)["all"]
    assert (row.num_data, row.coverage, row.size) == (7, 1.0, math.inf)


def test_bad_input_is_refused() -> None:
    for sets, kind in ((SETS.float(), TypeError), (SETS[0], ValueError), (SETS[:0], ValueError), ([True], TypeError)):
        with pytest.raises(kind, match=r"^sets: "):
            coverage_of_sets(sets, LABELS)  # type: ignore[arg-type]
    for labels, kind in ((LABELS.float(), TypeError), (LABELS[:2], ValueError), (LABELS + 1, ValueError)):
        with pytest.raises(kind, match=r"^labels: "):
            coverage_of_sets(SETS, labels)
    with pytest.raises(ValueError, match=r"^uncertainty: "):
        coverage_of_sets(SETS, LABELS, uncertainty=torch.zeros(3))
    with pytest.raises(ValueError, match=r"^bins: "):
        coverage_of_sets(SETS, LABELS, bins=0)
    zeros, ones = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match=r"^lower: "):
        coverage_of_intervals(ones, zeros, zeros)
    with pytest.raises(ValueError, match=r"^targets: expected shape"):
        coverage_of_intervals(zeros, ones, zeros[:2])
    with pytest.raises(ValueError, match=r"^targets: none"):
        coverage_of_intervals(zeros, ones, zeros / 0)
    with pytest.raises(ValueError, match=r"^uncertainty: "):
        coverage_of_intervals(zeros, ones, zeros, uncertainty=zeros[:2])
