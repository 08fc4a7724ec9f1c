"""Bootstrap intervals of detection: the weighted measures against scikit-learn's, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyrobnn.metrics import detection_intervals, detection_report
from pyrobnn.metrics.detection_intervals import weighted_measures

NAMES = ["auroc", "aupr_out", "aupr_in", "fpr95_out", "fpr95_in"]


def test_weights_count_like_repeated_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        known = torch.randint(0, 12, (30,), generator=generator).double()  # many ties
        unknown = torch.randint(3, 15, (40,), generator=generator).double()
        counts = [torch.stack([(side == value).sum() for value in range(15)]) for side in (known, unknown)]
        found = weighted_measures(*(count.double().unsqueeze(0) for count in counts))
        expected = detection_report(known, unknown)
        assert list(found) == NAMES
        for name, value in found.items():
            assert float(value) == pytest.approx(expected[name], abs=1e-12), name


def test_interval_of_auroc_is_as_wide_as_its_standard_error() -> None:
    # For exponential scores P(out > in) = 0.75; Hanley and McNeil's variance, with n = m = 300.
    generator = np.random.default_rng(0)
    known = torch.from_numpy(generator.exponential(1.0, 300))
    unknown = torch.from_numpy(generator.exponential(3.0, 300))
    a = float(detection_report(known, unknown)["auroc"])
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = ((a * (1 - a) + 299 * (q1 - a * a) + 299 * (q2 - a * a)) / 300**2) ** 0.5
    low, high = detection_intervals(known, unknown, num_resamples=2000)["auroc"]
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.1)
    assert low < a < high
    assert low < 0.75 < high


def test_same_seed_same_interval_and_random_state_is_kept() -> None:
    known, unknown = torch.rand(50), torch.rand(60) + 0.3
    state = torch.get_rng_state()
    first = detection_intervals(known, unknown, num_resamples=50)
    assert first == detection_intervals(known, unknown, num_resamples=50)
    assert first != detection_intervals(known, unknown, num_resamples=50, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    perfect = detection_intervals(torch.zeros(5), torch.ones(5), num_resamples=20)
    assert perfect == dict.fromkeys(["auroc", "aupr_out", "aupr_in"], (1.0, 1.0)) | dict.fromkeys(
        ["fpr95_out", "fpr95_in"], (0.0, 0.0)
    )


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"out_of_distribution.*at least one"):
        detection_intervals(torch.rand(3), torch.zeros(0))
    with pytest.raises(ValueError, match="level"):
        detection_intervals(torch.rand(3), torch.rand(3), level=1.0)
