import math

import pytest
import torch
from torch.distributions import Laplace, LogNormal, Normal

from pyrobnn.metrics import crps, gaussian_crps, gaussian_mixture_crps, laplace_mixture_crps, log_normal_mixture_crps


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


def cells(low, high, count=400_001):
    return torch.linspace(low, high, count, dtype=torch.float64)


def integral(cdf, y, grid):
    """The score by the trapezoid rule; the jump at y costs at most one cell."""
    return torch.trapezoid((cdf(grid) - (grid >= y).double()).square(), grid).item()


LOC = torch.tensor([-1.0, 0.5, 0.5, 4.0], dtype=torch.float64)
SCALE = torch.tensor([0.3, 1.0, 1.0 + 1e-7, 0.05], dtype=torch.float64)
SHARES = torch.tensor([0.4, 0.3, 0.1, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("y", [-3.0, 0.2, 3.9, 9.0])
@pytest.mark.parametrize(
    ("score", "kind", "low"),
    [
        (gaussian_mixture_crps, Normal, -30.0),
        (laplace_mixture_crps, Laplace, -30.0),
        (log_normal_mixture_crps, LogNormal, 1e-12),
    ],
)
def test_closed_forms_of_mixtures_are_the_integral_of_squared_cdf_errors(score, kind, low, y):
    """Cells of 2e-4 (5e-4 up to the log-normal's far tail); two scales are equal but for rounding."""
    each = kind(LOC, SCALE)
    y = abs(y)

    def cdf(grid):
        return (SHARES * each.cdf(grid.unsqueeze(-1))).sum(-1)

    expected = integral(cdf, y, cells(low, 200.0 if kind is LogNormal else 50.0))
    found = score(LOC[:, None], SCALE[:, None], torch.tensor([y], dtype=torch.float64), SHARES[:, None])
    assert found.item() == pytest.approx(expected, abs=5e-4)


def test_a_log_normal_of_positive_support_scores_targets_that_are_not():
    """Below 0 the distribution function is 0, so that the score grows by the distance."""
    loc, scale = torch.zeros(2, 3), torch.ones(2, 3)
    found = log_normal_mixture_crps(loc, scale, torch.tensor([0.0, -1.0, -2.5]), reduction="none")
    torch.testing.assert_close(found - found[0], torch.tensor([0.0, 1.0, 2.5]))


def test_a_log_normal_of_an_enormous_mean_keeps_its_digits():
    """For one component it is ``y (2 Φ(z) - 1) - 2 m (Φ(z - σ) + Φ(σ / √2) - 1)`` with ``m = exp(σ² / 2)``; z = 0."""
    one = torch.ones(1, dtype=torch.float64)
    for scale in (5.0, 30.0):
        found = log_normal_mixture_crps(0.0 * one[None], scale * one[None], one)
        log_tails = [torch.special.log_ndtr(-scale * one / math.sqrt(2)), torch.special.log_ndtr(-scale * one)]
        first, second = (math.exp(scale**2 / 2 + tail.item()) for tail in log_tails)
        assert found.item() == pytest.approx(2.0 * (first - second), rel=1e-9)


@pytest.mark.parametrize("score", [gaussian_mixture_crps, laplace_mixture_crps, log_normal_mixture_crps])
def test_equal_components_are_one(score):
    generator = torch.Generator().manual_seed(4)
    loc, scale, y = torch.randn(1, 6, generator=generator), torch.rand(1, 6, generator=generator) + 0.1, torch.ones(6)
    torch.testing.assert_close(score(loc.expand(5, 6), scale.expand(5, 6), y), score(loc, scale, y))


def test_a_mixture_of_one_gaussian_is_the_gaussian():
    generator = torch.Generator().manual_seed(5)
    loc, y = torch.randn(2, 6, generator=generator)
    scale = torch.rand(6, generator=generator) + 0.1
    found = gaussian_mixture_crps(loc[None], scale[None], y, reduction="none")
    torch.testing.assert_close(found, gaussian_crps(loc, scale, y, reduction="none"))


def test_closed_forms_of_mixtures_against_draws():
    # The fair score of 400 draws is unbiased; 2,000 targets; z = 4.5.
    generator = torch.Generator().manual_seed(6)
    loc, y = torch.randn(3, 2000, generator=generator), torch.randn(2000, generator=generator)
    scale = torch.rand(3, 2000, generator=generator) + 0.1
    torch.manual_seed(7)
    for score, kind in [
        (gaussian_mixture_crps, Normal),
        (laplace_mixture_crps, Laplace),
        (log_normal_mixture_crps, LogNormal),
    ]:
        draws = kind(loc, scale).sample((400,))
        chosen = torch.randint(3, (400, 1, 2000))
        errors = crps(draws.gather(1, chosen).squeeze(1), y, reduction="none") - score(loc, scale, y, reduction="none")
        assert errors.mean().abs() < 4.5 * errors.std() / math.sqrt(2000)


def test_scores_are_those_of_scoringrules():
    """A published package on random input, scores of all kinds."""
    rules = pytest.importorskip("scoringrules")
    generator = torch.Generator().manual_seed(8)
    loc, scale, logits = torch.randn(3, 4, 50, generator=generator, dtype=torch.float64)
    scale, shares, y = scale.exp(), logits.softmax(0), 2.0 * torch.randn(50, generator=generator).double()
    found = gaussian_mixture_crps(loc, scale, y, shares, reduction="none")
    expected = rules.crps_mixnorm(y.numpy(), loc.numpy(), scale.numpy(), shares.numpy(), m_axis=0)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-10, atol=1e-12)
    one, size = loc[0].numpy(), scale[0].numpy()
    for name, score, at in [
        ("crps_normal", gaussian_mixture_crps, y),
        ("crps_laplace", laplace_mixture_crps, y),
        ("crps_lognormal", log_normal_mixture_crps, y.abs()),
    ]:
        found = score(loc[:1], scale[:1], at, reduction="none")
        expected = torch.from_numpy(getattr(rules, name)(at.numpy(), one, size))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    draws = torch.randn(9, 50, generator=generator, dtype=torch.float64)
    for fair, estimator in ((True, "fair"), (False, "nrg")):
        expected = rules.crps_ensemble(y.numpy(), draws.numpy(), m_axis=0, estimator=estimator)
        torch.testing.assert_close(crps(draws, y, fair=fair, reduction="none"), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loc": torch.zeros(())}, ValueError, "scale: .*implied by loc|loc: expected shape"),
        ({"scale": torch.zeros(2, 4)}, ValueError, "scale: expected values > 0"),
        ({"scale": -torch.ones(2, 4)}, ValueError, "scale: expected values > 0, got -1"),
        ({"y": torch.zeros(3)}, ValueError, r"y: expected shape \[4\]"),
        ({"y": torch.full((4,), torch.nan)}, ValueError, "y: expected finite"),
        ({"shares": torch.ones(2, 4)}, ValueError, "shares: .*sum to 1"),
        ({"shares": torch.tensor([[-1.0] * 4, [2.0] * 4])}, ValueError, "shares: "),
        ({"shares": torch.ones(2)}, ValueError, r"shares: expected shape \[2, 4\]"),
    ],
)
def test_mixtures_refuse(changes, error, message):
    arguments = {"loc": torch.zeros(2, 4), "scale": torch.ones(2, 4), "y": torch.zeros(4)}
    for score in (gaussian_mixture_crps, laplace_mixture_crps, log_normal_mixture_crps):
        with pytest.raises(error, match=message):
            score(**arguments | changes)
