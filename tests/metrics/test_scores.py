import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, mean_pinball_loss
from torch.distributions import Normal

from pyrobnn.metrics import accuracy, brier, crps, gaussian_crps, interval_coverage, interval_width, nll, pinball, rmse

PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 2])


def test_classification_scores_known_answers():
    assert nll(PROBS[:2], Y[:2]).item() == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2)
    assert nll(PROBS, Y, reduction="none")[2] == torch.inf
    assert brier(PROBS, Y, reduction="none").tolist() == pytest.approx([0.14, 0.74, 1.5])
    assert brier(PROBS, Y).item() == pytest.approx((0.14 + 0.74 + 1.5) / 3)
    assert accuracy(PROBS, Y, reduction="none").tolist() == [1.0, 0.0, 0.0]
    assert accuracy(PROBS, Y).item() == pytest.approx(1 / 3)


def test_brier_extremes_are_zero_and_two():
    certain = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert brier(certain, torch.tensor([0, 1]), reduction="none").tolist() == [0.0, 2.0]


def test_accuracy_tie_goes_to_the_lowest_class():
    tied = torch.tensor([[0.5, 0.5]])
    assert accuracy(tied, torch.tensor([0])) == 1
    assert accuracy(tied, torch.tensor([1])) == 0


def test_nll_and_brier_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(torch.randn(200, 4, generator=generator, dtype=torch.float64), -1)
    y = torch.randint(4, (200,), generator=generator)
    assert nll(probs, y).item() == pytest.approx(log_loss(y, probs))
    assert brier(probs, y).item() == pytest.approx(brier_score_loss(y, probs, scale_by_half=False, labels=range(4)))


@pytest.mark.parametrize("score", [nll, brier])
def test_classification_scores_are_proper(score):
    # The exact expected score under true probabilities q is least at p = q.
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    others = torch.softmax(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)), -1).double()
    others = others / others.sum(-1, keepdim=True)

    def expected(p):
        return sum(q[c] * score(p, torch.full(p.shape[:-1], c), reduction="none") for c in range(3))

    assert (expected(others) > expected(q[None])).all()


def test_rmse_known_answer():
    mean, y = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])
    assert rmse(mean, y).item() == pytest.approx(math.sqrt(12.5))
    assert rmse(mean, y, reduction="none").tolist() == [9.0, 16.0]


def test_crps_against_all_pairs():
    generator = torch.Generator().manual_seed(2)
    draws = torch.randn(7, 3, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    error = (draws - y).abs().mean(0)
    pairs = (draws[:, None] - draws[None]).abs().sum((0, 1))
    torch.testing.assert_close(crps(draws, y, fair=False, reduction="none"), error - pairs / (2 * 7 * 7))
    torch.testing.assert_close(crps(draws, y, reduction="none"), error - pairs / (2 * 7 * 6))
    torch.testing.assert_close(crps(draws, y), (error - pairs / 84).mean())


def test_crps_of_one_draw_is_the_absolute_error():
    assert crps(torch.tensor([[2.0]]), torch.tensor([5.0]), fair=False) == 3
    with pytest.raises(ValueError, match="at least 2 draws"):
        crps(torch.tensor([[2.0]]), torch.tensor([5.0]))


def test_fair_crps_is_unbiased_and_the_empirical_one_is_not():
    # 100 000 pairs of draws (S = 2) from N(0.3, 2²), y = 1; z = 4.5.
    # The bias is E|X - X'| / (2 S) = σ / (2 √π).
    num, std = 100_000, 2.0
    draws = 0.3 + std * torch.randn(2, num, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = torch.ones(num, dtype=torch.float64)
    exact = gaussian_crps(torch.full_like(y, 0.3), torch.full_like(y, std), y)
    bias = std / (2 * math.sqrt(math.pi))
    for fair, expected in [(True, exact), (False, exact + bias)]:
        values = crps(draws, y, fair=fair, reduction="none")
        assert abs(values.mean() - expected) < 4.5 * values.std() / math.sqrt(num)


@pytest.mark.parametrize(("mean", "std", "y"), [(0.0, 1.0, 0.0), (1.0, 0.5, -2.0), (-3.0, 4.0, 2.5)])
def test_gaussian_crps_is_the_integral_of_squared_cdf_errors(mean, std, y):
    # The trapezoid rule in cells of 2e-4; the jump at y costs at most one cell.
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    cdf = Normal(torch.tensor(mean, dtype=torch.float64), std).cdf(grid)
    integral = torch.trapezoid((cdf - (grid >= y).double()).square(), grid)
    m, s, t = (torch.tensor([v], dtype=torch.float64) for v in (mean, std, y))
    assert gaussian_crps(m, s, t).item() == pytest.approx(integral.item(), abs=2e-4)


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


def test_interval_scores_known_answers():
    lower, upper = torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([1.0, 2.0, 0.0])
    y = torch.tensor([1.0, 3.0, -5.0])
    assert interval_coverage(lower, upper, y, reduction="none").tolist() == [1.0, 0.0, 1.0]
    assert interval_coverage(lower, upper, y).item() == pytest.approx(2 / 3)
    assert interval_width(lower[:2], upper[:2]).item() == 1.5
    assert interval_width(lower, upper) == torch.inf


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 2**16))
def test_reductions_and_shapes(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, y = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    std = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    draws = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    probs = torch.softmax(torch.randn(*shape, 3, generator=generator, dtype=torch.float64), -1)
    labels = torch.randint(3, shape, generator=generator)
    for score, arguments in [
        (nll, (probs, labels)),
        (brier, (probs, labels)),
        (accuracy, (probs, labels)),
        (gaussian_crps, (mean, std, y)),
        (crps, (draws, y)),
        (pinball, (mean, y, 0.3)),
        (interval_coverage, (mean - std, mean + std, y)),
        (interval_width, (mean - std, mean + std)),
    ]:
        each = score(*arguments, reduction="none")
        assert each.shape == torch.Size(shape)
        torch.testing.assert_close(score(*arguments), each.mean())


@pytest.mark.parametrize("score", [nll, brier, accuracy])
@pytest.mark.parametrize(
    ("probs", "y", "error", "message"),
    [
        (PROBS, torch.tensor([0, 1, 3]), ValueError, r"y: expected labels in 0 \.\. 2, got 3"),
        (PROBS, torch.tensor([0, -100, 1]), ValueError, r"got -100.*ignore"),
        (PROBS, torch.eye(3, dtype=torch.long), ValueError, r"y: .*shape \[3\], got \[3, 3\].*argmax"),
        (PROBS, Y.float(), TypeError, r"y: .*integer class labels.*float32.*y\.long"),
        (PROBS.log(), Y, ValueError, r"probs: expected finite"),
        (PROBS * 2, Y, ValueError, r"probs: .*sum to 1"),
        (torch.rand(3), Y, ValueError, r"probs: .*sum to 1|probs: .*one label"),
    ],
)
def test_classification_scores_refuse(score, probs, y, error, message):
    with pytest.raises(error, match=message):
        score(probs, y)


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
        (lambda x: pinball(x, x, 95), ValueError, r"level: .*\(0, 1\), got 95"),
        (lambda x: interval_width(x + 1, x), ValueError, "violated at 4 of 4"),
        (lambda x: interval_coverage(x, x * torch.nan, x), ValueError, "upper: expected no NaN"),
        (lambda x: rmse(x, x, reduction="sum"), ValueError, "reduction: .*got 'sum'"),
    ],
)
def test_regression_scores_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(4))
