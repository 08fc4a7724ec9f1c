import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrobnn.detection import aupr, auroc, detection_report, fpr_at_tpr

FUNCTIONS = [auroc, aupr, fpr_at_tpr, detection_report]
scores = st.lists(st.sampled_from([-torch.inf, -3.0, 0.0, 0.1, 2.0, 50.0, torch.inf]), min_size=1, max_size=12)


def test_perfect_and_reversed_detection():
    known, unknown = torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.3, 0.4])
    assert detection_report(known, unknown) == {
        "auroc": 1.0,
        "aupr_unknown": 1.0,
        "aupr_known": 1.0,
        "fpr95_unknown": 0.0,
        "fpr95_known": 0.0,
    }
    assert auroc(unknown, known) == 0.0
    assert fpr_at_tpr(unknown, known) == 1.0


def test_constant_score_is_chance():
    known, unknown = torch.zeros(30), torch.zeros(10)
    assert auroc(known, unknown) == 0.5
    assert aupr(known, unknown) == pytest.approx(0.25)
    assert aupr(known, unknown, positive="known") == pytest.approx(0.75)
    assert fpr_at_tpr(known, unknown) == 1.0


def test_hand_computed():
    # From the top: unknown 0.9, known 0.8, unknown 0.7, known 0.2, known 0.1.
    known, unknown = torch.tensor([0.1, 0.2, 0.8]), torch.tensor([0.7, 0.9])
    assert auroc(known, unknown) == pytest.approx(5 / 6)
    assert aupr(known, unknown) == pytest.approx((1 + 2 / 3) / 2)
    assert aupr(known, unknown, "known") == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert fpr_at_tpr(known, unknown) == pytest.approx(1 / 3)
    assert fpr_at_tpr(known, unknown, tpr=0.5) == 0.0
    assert fpr_at_tpr(known, unknown, positive="known") == pytest.approx(1 / 2)


def test_rate_is_reached_and_not_exceeded():
    # 19 of 20 unknown inputs lie above all known ones: exactly 95 %.
    known, unknown = torch.arange(10.0), torch.cat([torch.full((19,), 100.0), torch.tensor([-1.0])])
    assert fpr_at_tpr(known, unknown, tpr=0.95) == 0.0
    assert fpr_at_tpr(known, unknown, tpr=0.96) == 1.0


def test_two_gaussians():
    # Scores N(0, 1) and N(2, 1), 20 000 each: AUROC = Φ(2 / √2), FPR95 = 1 - Φ(2 - 1.645). z = 4.5, with
    # standard errors of at most √(1 / 4 / 20 000); for FPR95 the error of the 5 % quantile adds to it, times
    # the ratio of the two densities there.
    generator = torch.Generator().manual_seed(0)
    known, unknown = torch.randn(20_000, generator=generator), 2 + torch.randn(20_000, generator=generator)
    normal = torch.distributions.Normal(0.0, 1.0)
    standard_error = math.sqrt(0.25 / 20_000)
    assert abs(auroc(known, unknown) - normal.cdf(torch.tensor(math.sqrt(2)))) < 4.5 * standard_error
    slope = math.exp(-((2 - 1.645) ** 2) / 2 + 1.645**2 / 2)
    fpr_error = math.hypot(standard_error, slope * math.sqrt(0.05 * 0.95 / 20_000))
    assert abs(fpr_at_tpr(known, unknown) - (1 - normal.cdf(torch.tensor(2 - 1.645)))) < 4.5 * fpr_error


@settings(max_examples=60, deadline=None)
@given(known=scores, unknown=scores)
def test_definitions_with_ties_and_infinities(known, unknown):
    pairs = [(u > k) + 0.5 * (u == k) for u in unknown for k in known]
    known, unknown = torch.tensor(known), torch.tensor(unknown)
    assert auroc(known, unknown) == pytest.approx(sum(pairs) / len(pairs))
    thresholds = torch.cat([known, unknown])
    rates = [((unknown >= t).double().mean(), (known >= t).double().mean()) for t in thresholds]
    assert fpr_at_tpr(known, unknown, 0.8) == min(fpr for tpr, fpr in rates if tpr >= 0.8)
    # Calling the known inputs positive is the same as swapping the roles and the sign.
    assert aupr(known, unknown, "known") == pytest.approx(aupr(-unknown, -known, "unknown"))
    assert fpr_at_tpr(known, unknown, positive="known") == fpr_at_tpr(-unknown, -known)


def test_large_scores_keep_their_order():
    # A sigmoid in 32 bits would tie all of these.
    known, unknown = torch.tensor([100.0, 101.0]), torch.tensor([102.0, 103.0])
    assert auroc(known, unknown) == 1.0


def test_report_can_be_written_as_json():
    report = detection_report(torch.rand(20), torch.rand(10))
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("known", "unknown", "error", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3), ValueError, r"known: expected 1 dimension.*\[3, 2\].*flatten"),
        (torch.zeros(3), torch.zeros(0), ValueError, "unknown: expected at least one element"),
        (torch.zeros(3), torch.tensor([torch.nan]), ValueError, "unknown: expected no NaN"),
        (torch.zeros(3, dtype=torch.long), torch.zeros(3), TypeError, "known: .*int64"),
    ],
)
def test_bad_scores_are_refused(function, known, unknown, error, message):
    with pytest.raises(error, match=message):
        function(known, unknown)


def test_bad_options_are_refused():
    known, unknown = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match=r"tpr: expected a rate in \(0, 1\], got 95"):
        fpr_at_tpr(known, unknown, tpr=95)
    with pytest.raises(ValueError, match="positive: expected 'unknown' or 'known', got 'out'"):
        aupr(known, unknown, positive="out")
