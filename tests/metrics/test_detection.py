import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrobnn.metrics import aupr, auroc, detection_report, fpr_at_tpr

FUNCTIONS = [auroc, aupr, fpr_at_tpr, detection_report]
scores = st.lists(st.sampled_from([-torch.inf, -3.0, 0.0, 0.1, 2.0, 50.0, torch.inf]), min_size=1, max_size=12)


def test_perfect_and_reversed_detection():
    in_distribution, out_of_distribution = torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.3, 0.4])
    assert detection_report(in_distribution, out_of_distribution) == {
        "auroc": 1.0,
        "aupr_out": 1.0,
        "aupr_in": 1.0,
        "fpr95_out": 0.0,
        "fpr95_in": 0.0,
    }
    assert auroc(out_of_distribution, in_distribution) == 0.0
    assert fpr_at_tpr(out_of_distribution, in_distribution) == 1.0


def test_constant_score_is_chance():
    in_distribution, out_of_distribution = torch.zeros(30), torch.zeros(10)
    assert auroc(in_distribution, out_of_distribution) == 0.5
    assert aupr(in_distribution, out_of_distribution) == pytest.approx(0.25)
    assert aupr(in_distribution, out_of_distribution, positive="in") == pytest.approx(0.75)
    assert fpr_at_tpr(in_distribution, out_of_distribution) == 1.0


def test_hand_computed():
    # From the top: unknown 0.9, known 0.8, unknown 0.7, known 0.2, known 0.1.
    in_distribution, out_of_distribution = torch.tensor([0.1, 0.2, 0.8]), torch.tensor([0.7, 0.9])
    assert auroc(in_distribution, out_of_distribution) == pytest.approx(5 / 6)
    assert aupr(in_distribution, out_of_distribution) == pytest.approx((1 + 2 / 3) / 2)
    assert aupr(in_distribution, out_of_distribution, "in") == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert fpr_at_tpr(in_distribution, out_of_distribution) == pytest.approx(1 / 3)
    assert fpr_at_tpr(in_distribution, out_of_distribution, tpr=0.5) == 0.0
    assert fpr_at_tpr(in_distribution, out_of_distribution, positive="in") == pytest.approx(1 / 2)


def test_rate_is_reached_and_not_exceeded():
    # 19 of 20 unknown inputs lie above all known ones: exactly 95 %.
    in_distribution, out_of_distribution = (
        torch.arange(10.0),
        torch.cat([torch.full((19,), 100.0), torch.tensor([-1.0])]),
    )
    assert fpr_at_tpr(in_distribution, out_of_distribution, tpr=0.95) == 0.0
    assert fpr_at_tpr(in_distribution, out_of_distribution, tpr=0.96) == 1.0


def test_two_gaussians():
    # Scores N(0, 1) and N(2, 1), 20 000 each: AUROC = Φ(2 / √2), FPR95 = 1 - Φ(2 - 1.645). z = 4.5, with
    # standard errors of at most √(1 / 4 / 20 000); for FPR95 the error of the 5 % quantile adds to it, times
    # the ratio of the two densities there.
    generator = torch.Generator().manual_seed(0)
    in_distribution, out_of_distribution = (
        torch.randn(20_000, generator=generator),
        2 + torch.randn(20_000, generator=generator),
    )
    normal = torch.distributions.Normal(0.0, 1.0)
    standard_error = math.sqrt(0.25 / 20_000)
    assert (
        abs(auroc(in_distribution, out_of_distribution) - normal.cdf(torch.tensor(math.sqrt(2)))) < 4.5 * standard_error
    )
    slope = math.exp(-((2 - 1.645) ** 2) / 2 + 1.645**2 / 2)
    fpr_error = math.hypot(standard_error, slope * math.sqrt(0.05 * 0.95 / 20_000))
    assert (
        abs(fpr_at_tpr(in_distribution, out_of_distribution) - (1 - normal.cdf(torch.tensor(2 - 1.645))))
        < 4.5 * fpr_error
    )


@settings(max_examples=60, deadline=None)
@given(in_distribution=scores, out_of_distribution=scores)
def test_definitions_with_ties_and_infinities(in_distribution, out_of_distribution):
    pairs = [(u > k) + 0.5 * (u == k) for u in out_of_distribution for k in in_distribution]
    in_distribution, out_of_distribution = torch.tensor(in_distribution), torch.tensor(out_of_distribution)
    assert auroc(in_distribution, out_of_distribution) == pytest.approx(sum(pairs) / len(pairs))
    thresholds = torch.cat([in_distribution, out_of_distribution])
    rates = [((out_of_distribution >= t).double().mean(), (in_distribution >= t).double().mean()) for t in thresholds]
    assert fpr_at_tpr(in_distribution, out_of_distribution, 0.8) == min(fpr for tpr, fpr in rates if tpr >= 0.8)
    # Calling the known inputs positive is the same as swapping the roles and the sign.
    assert aupr(in_distribution, out_of_distribution, "in") == pytest.approx(
        aupr(-out_of_distribution, -in_distribution, "out")
    )
    assert fpr_at_tpr(in_distribution, out_of_distribution, positive="in") == fpr_at_tpr(
        -out_of_distribution, -in_distribution
    )


def test_large_scores_keep_their_order():
    # A sigmoid in 32 bits would tie all of these.
    in_distribution, out_of_distribution = torch.tensor([100.0, 101.0]), torch.tensor([102.0, 103.0])
    assert auroc(in_distribution, out_of_distribution) == 1.0


def test_report_can_be_written_as_json():
    report = detection_report(torch.rand(20), torch.rand(10))
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("in_distribution", "out_of_distribution", "error", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3), ValueError, r"in_distribution: expected 1 dimension.*\[3, 2\].*flatten"),
        (torch.zeros(3), torch.zeros(0), ValueError, "out_of_distribution: expected at least one element"),
        (torch.zeros(3), torch.tensor([torch.nan]), ValueError, "out_of_distribution: expected no NaN"),
        (torch.zeros(3, dtype=torch.long), torch.zeros(3), TypeError, "in_distribution: .*int64"),
    ],
)
def test_bad_scores_are_refused(function, in_distribution, out_of_distribution, error, message):
    with pytest.raises(error, match=message):
        function(in_distribution, out_of_distribution)


def test_bad_options_are_refused():
    in_distribution, out_of_distribution = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match=r"tpr: expected a rate in \(0, 1\], got 95"):
        fpr_at_tpr(in_distribution, out_of_distribution, tpr=95)
    with pytest.raises(ValueError, match="positive: expected 'out' or 'in', got 'both'"):
        aupr(in_distribution, out_of_distribution, positive="both")
