import pytest
import torch

from pyrobnn.metrics import cwce, epiw, interval_coverage, interval_score, interval_width, pinball, r2, r_cwce


def test_interval_scores_known_answers():
    lower, upper = torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([1.0, 2.0, 0.0])
    y = torch.tensor([1.0, 3.0, -5.0])
    assert interval_coverage(lower, upper, y, reduction="none").tolist() == [1.0, 0.0, 1.0]
    assert interval_coverage(lower, upper, y).item() == pytest.approx(2 / 3)
    assert interval_width(lower[:2], upper[:2]).item() == 1.5
    assert interval_width(lower, upper) == torch.inf


def test_interval_score_known_answers():
    lower, upper, y = torch.zeros(3), torch.full((3,), 2.0), torch.tensor([1.0, -0.5, 3.0])
    # At level 0.8, alpha is 0.2: the width of 2, and 10 times the distance outside.
    assert interval_score(lower, upper, y, 0.8, reduction="none").tolist() == pytest.approx([2.0, 7.0, 12.0])


def test_interval_score_is_the_pinball_loss_of_both_ends():
    generator = torch.Generator().manual_seed(0)
    lower, y = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    upper = lower + 0.5
    expected = pinball(lower, y, 0.15) + pinball(upper, y, 0.85)
    assert interval_score(lower, upper, y, 0.7).item() == pytest.approx(2.0 / 0.3 * expected.item())


def test_an_interval_of_no_width_holds_only_its_target():
    ends = torch.tensor([1.0, 1.0])
    y = torch.tensor([1.0, 2.0])
    assert interval_coverage(ends, ends, y) == 0.5
    assert interval_width(ends, ends) == 0.0
    assert interval_score(ends, ends, y, 0.5, reduction="none").tolist() == [0.0, 4.0]


def test_interval_score_is_that_of_scoringrules():
    rules = pytest.importorskip("scoringrules")
    generator = torch.Generator().manual_seed(1)
    lower, y = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    upper = lower + torch.rand(60, generator=generator, dtype=torch.float64)
    expected = rules.interval_score(y.numpy(), lower.numpy(), upper.numpy(), 0.35)
    torch.testing.assert_close(interval_score(lower, upper, y, 0.65, reduction="none"), torch.from_numpy(expected))


Y = torch.arange(10, dtype=torch.float64)
LEVELS = [0.25, 0.5, 0.75]
LOWER, UPPER = torch.zeros(3, 10).double(), torch.tensor([1.5, 4.5, 5.5]).double()[:, None].expand(3, 10)


def test_calibration_error_known_answers():
    """Coverages 0.2, 0.5, 0.6 of levels 0.25, 0.5, 0.75: gaps 0.05, 0, 0.15."""
    assert cwce(LOWER, UPPER, Y, LEVELS).item() == pytest.approx(100 * (0.25 * 0.05 + 0.75 * 0.15) / 1.5)
    assert cwce(LOWER, UPPER, Y, LEVELS, level_weights="uniform").item() == pytest.approx(100 * 0.2 / 3)
    own = torch.tensor([0.0, 1.0, 3.0])
    assert cwce(LOWER, UPPER, Y, torch.tensor(LEVELS), level_weights=own).item() == pytest.approx(100 * 0.45 / 4)
    assert epiw(LOWER, UPPER).item() == pytest.approx(11.5 / 3)


def test_weights_of_examples_enter_coverages_and_widths():
    weight = torch.tensor([1.0, 1.0] + 8 * [0.0])
    assert cwce(LOWER, UPPER, Y, LEVELS, level_weights="uniform", weight=weight).item() == pytest.approx(50.0)
    widths = torch.arange(10.0).expand(3, 10)
    assert epiw(torch.zeros(3, 10), widths, weight=weight).item() == 0.5


def test_regression_weighted_error_is_the_product():
    """The identity, and its value for published R² and CWCE: 0.061 · 2.894, 0.08 · 9.305 and 0.057 · 9.078."""
    mean = Y + torch.tensor([1.0, -1.0]).double().repeat(5)
    found = r_cwce(mean, LOWER, UPPER, Y, LEVELS)
    torch.testing.assert_close(found, (1 - r2(mean, Y)) * cwce(LOWER, UPPER, Y, LEVELS))
    assert found.item() == pytest.approx(10.0 / 82.5 * 100 * 0.125 / 1.5)


def test_calibrated_normal_intervals_have_a_small_error():
    """Coverages of 20,000 targets have standard errors of at most 0.0036, so that the mean gap is below 0.72 %."""
    normal = torch.distributions.Normal(0.0, 1.0)
    y = torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    levels = torch.arange(1, 10) / 10
    half = normal.icdf((1 + levels) / 2)[:, None].expand(9, len(y))
    assert cwce(-half, half, y, levels) < 0.72
    narrow = cwce(-half / 3, half / 3, y, levels)  # coverages 2 Φ(z / 3) - 1
    expected = (levels * (levels - (2 * normal.cdf(half[:, 0] / 3) - 1))).sum() / levels.sum()
    assert narrow.item() == pytest.approx(100 * expected.item(), abs=0.72)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [0.5, 1.0, 0.7]}, "levels: .*between 0 and 1, got 1.0"),
        ({"levels": [0.5, 0.9]}, r"lower: expected shape \[2, N, ...\]"),
        ({"levels": 0.5}, "levels: expected coverages"),
        ({"levels": []}, "levels: expected coverages"),
        ({"levels": torch.tensor([0.0, 0.5, 0.9])}, "levels: expected coverages"),
        ({"level_weights": "mean"}, "level_weights: expected 'level'"),
        ({"level_weights": torch.ones(2)}, r"level_weights: .*shape \[3\], got \[2\]"),
        ({"level_weights": -torch.ones(3)}, "level_weights: expected finite weights of at least 0"),
        ({"level_weights": torch.zeros(3)}, "level_weights: .*not all 0"),
        ({"lower": UPPER + 1}, "lower: expected lower <= upper"),
        ({"lower": LOWER[0]}, r"upper: expected shape \[10\]"),
        ({"y": Y[:, None]}, r"y: expected shape \[10\]"),
        ({"y": Y.long()}, "y: expected a floating-point"),
    ],
)
def test_wrong_levels_and_intervals_are_refused(changes, message):
    arguments = {"lower": LOWER, "upper": UPPER, "y": Y, "levels": LEVELS}
    with pytest.raises((ValueError, TypeError), match=message):
        cwce(**arguments | changes)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90, float("nan"), True])
def test_interval_score_refuses_levels_outside_0_and_1(level):
    with pytest.raises(ValueError, match="level: expected a probability between 0 and 1"):
        interval_score(LOWER[0], UPPER[0], Y, level)
