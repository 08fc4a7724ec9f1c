import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss, r2_score
from torch.distributions import Normal

from pyrobnn.metrics import (
    crps,
    energy_score,
    gaussian_crps,
    gaussian_mixture_crps,
    interval_coverage,
    interval_score,
    interval_width,
    pinball,
    r2,
    rmse,
)


def test_rmse_known_answer():
    mean, y = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])
    assert rmse(mean, y).item() == pytest.approx(math.sqrt(12.5))
    assert rmse(mean, y, reduction="none").tolist() == [9.0, 16.0]


def test_pinball_known_answers_and_scikit_learn():
    q, y = torch.tensor([0.0, 0.0]), torch.tensor([2.0, -2.0])
    assert pinball(q, y, 0.9, reduction="none").tolist() == pytest.approx([1.8, 0.2])
    assert pinball(q, y, 0.9).item() == pytest.approx(mean_pinball_loss(y, q, alpha=0.9))


def test_crps_is_twice_the_integral_of_the_pinball_loss():
    # Midpoint rule over 4000 levels; the integrand's logarithmic ends bound the error by about 1e-3.
    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    y = torch.tensor([0.7], dtype=torch.float64)
    losses = [pinball(Normal(0.0, 1.0).icdf(level)[None], y, level.item()) for level in levels]
    expected = gaussian_crps(torch.zeros_like(y), torch.ones_like(y), y)
    assert 2 * torch.stack(losses).mean().item() == pytest.approx(expected.item(), abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 2**16))
def test_reductions_and_shapes(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, y = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    std = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    draws = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    for score, arguments in [
        (gaussian_mixture_crps, (draws, draws.square() + 0.1, y)),
        (interval_score, (mean - std, mean + std, y, 0.8)),
        (gaussian_crps, (mean, std, y)),
        (crps, (draws, y)),
        (pinball, (mean, y, 0.3)),
        (interval_coverage, (mean - std, mean + std, y)),
        (interval_width, (mean - std, mean + std)),
    ]:
        each = score(*arguments, reduction="none")
        assert each.shape == torch.Size(shape)
        torch.testing.assert_close(score(*arguments), each.mean())


def test_regression_scores_refuse_to_broadcast():
    column, row = torch.zeros(4, 1), torch.zeros(4)
    for call in (
        lambda: rmse(column, row),
        lambda: pinball(column, row, 0.5),
        lambda: gaussian_crps(row, row + 1, column),
        lambda: crps(torch.zeros(3, 4, 1), row),
        lambda: interval_coverage(row, row, column),
        lambda: interval_width(row, column),
    ):
        with pytest.raises(ValueError, match="not broadcast"):
            call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: rmse(x, x * torch.nan), ValueError, "y: expected finite"),
        (lambda x: rmse(x.long(), x), TypeError, "mean: .*int64"),
        (lambda x: crps(torch.tensor(1.0), torch.tensor(1.0)), ValueError, "draws: expected shape"),
        (lambda x: gaussian_crps(x, x, x), ValueError, "std: expected values > 0"),
        (lambda x: pinball(x, x, 95), ValueError, r"level: .*between 0 and 1, got 95"),
        (lambda x: interval_width(x + 1, x), ValueError, "violated at 4 of 4"),
        (lambda x: interval_coverage(x, x * torch.nan, x), ValueError, "upper: expected no NaN"),
        (lambda x: rmse(x, x, reduction="sum"), ValueError, "reduction: .*got 'sum'"),
    ],
)
def test_regression_scores_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(4))


def test_r2_of_several_targets_is_that_of_scikit_learn():
    y = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1, 10, 0.1])
    mean = y + 0.3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert r2(mean, y).item() == pytest.approx(r2_score(y, mean))
    assert r2(mean, y, weight=weight).item() == pytest.approx(r2_score(y, mean, sample_weight=weight))


def test_r2_of_targets_with_a_large_mean_keeps_its_digits():
    # In float64 the naive sum of squares of these targets, 1e16 each, would lose all of them.
    y = 1e8 + torch.arange(10, dtype=torch.float64)
    assert r2(y + 1.0, y).item() == pytest.approx(1.0 - 10.0 / 82.5, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_r2_of_constant_targets_is_refused(value):
    y = torch.full((7,), value)
    with pytest.raises(ValueError, match="y: R² is undefined"):
        r2(torch.randn(7), y)


def test_weights_repeat_examples():
    """Whole weights count an example that often; weight 0 leaves it out, even where its score is infinite."""
    generator = torch.Generator().manual_seed(3)
    y, mean, draws = (torch.randn(*shape, generator=generator).double() for shape in ((4, 2), (4, 2), (5, 4, 2)))
    weight = torch.tensor([2.0, 0.0, 1.0, 3.0])
    times = weight.long()
    for score, arguments in [
        (rmse, (mean, y)),
        (r2, (mean, y)),
        (crps, (draws, y)),
        (energy_score, (draws, y)),
        (gaussian_crps, (mean, mean.square() + 0.1, y)),
        (interval_score, (mean - 1, mean + 1, y, 0.7)),
        (pinball, (mean, y, 0.2)),
    ]:
        repeated = [a.repeat_interleave(times, a.dim() - 2) if isinstance(a, torch.Tensor) else a for a in arguments]
        torch.testing.assert_close(score(*arguments, weight=weight), score(*repeated))
    lower, upper = torch.tensor([0.0, -torch.inf]), torch.tensor([1.0, 0.0])
    assert interval_width(lower, upper, weight=torch.tensor([1.0, 0.0])) == 1.0


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.ones(3), ValueError, r"weight: .*shape \[4\], got \[3\]"),
        (torch.ones(4, dtype=torch.long), TypeError, "weight: expected a floating-point tensor"),
        (torch.tensor([1.0, -1.0, 1.0, 1.0]), ValueError, "weight: .*at least 0.*row 1"),
        (torch.zeros(4), ValueError, "weight: .*only zeros"),
    ],
)
def test_wrong_weights_are_refused(weight, error, message):
    x = torch.zeros(4)
    with pytest.raises(error, match=message):
        rmse(x, x, weight=weight)
    with pytest.raises(error, match=message):
        r2(x, torch.arange(4.0), weight=weight)


def test_weights_without_a_mean_are_refused():
    x = torch.zeros(4)
    with pytest.raises(ValueError, match=r"weight: .*reduction='none'"):
        rmse(x, x, reduction="none", weight=torch.ones(4))
