"""The inverse of the binary KL against closed forms, and the bounds made of it."""

from __future__ import annotations

import math

import pytest

from pyrobnn.diagnostics.generalization.kl_bounds import (
    binary_kl,
    catoni_bound,
    kl_inverse,
    maurer_bound,
    mcallester_bound,
)


@pytest.mark.parametrize("c", [1e-4, 0.01, 0.3, 2.0, 10.0])
def test_the_inverse_at_no_error_is_exponential(c: float) -> None:
    assert kl_inverse(0.0, c) == pytest.approx(-math.expm1(-c), rel=1e-12)


@pytest.mark.parametrize("q", [0.0, 1e-3, 0.02, 0.4, 0.9])
@pytest.mark.parametrize("p", [0.03, 0.5, 0.95])
def test_the_inverse_undoes_the_divergence(q: float, p: float) -> None:
    if p > q:
        assert kl_inverse(q, binary_kl(q, p)) == pytest.approx(p, rel=1e-9)


def test_the_divergence_from_a_half_is_the_missing_entropy() -> None:
    q = 0.2
    entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
    assert binary_kl(q, 0.5) == pytest.approx(math.log(2) - entropy)
    assert binary_kl(0.5, 0.0) == math.inf
    assert kl_inverse(0.5, math.inf) == 1.0
    assert kl_inverse(1.0, 0.1) == 1.0


def test_maurer_by_hand_at_no_error() -> None:
    """With r = 0 the bound is 1 - exp(-(D + ln(2 √n / δ)) / n)."""
    expected = 1 - math.exp(-(3.0 + math.log(2 * 10 / 0.05)) / 100)
    assert maurer_bound(0.0, 3.0, 100, 0.05) == pytest.approx(expected)


def test_mcallester_is_never_below_maurer() -> None:
    for risk in (0.0, 0.01, 0.2, 0.6):
        for divergence in (0.0, 5.0, 80.0):
            maurer = maurer_bound(risk, divergence, 200, 0.05)
            assert risk < maurer <= mcallester_bound(risk, divergence, 200, 0.05) <= 1.0


@pytest.mark.parametrize(("risk", "divergence"), [(0.0, 1.0), (0.02, 60.0), (0.3, 200.0)])
def test_the_best_c_of_catoni_gives_the_inverse(risk: float, divergence: float) -> None:
    """min over C of (1 - exp(-C r - c)) / (1 - exp(-C)) is kl⁻¹(r, c); a union over one value costs nothing."""
    n, delta = 1000, 0.05
    bounds = [catoni_bound(risk, divergence, n, delta, (c / 500,))[0] for c in range(1, 20_000)]
    assert min(bounds) == pytest.approx(kl_inverse(risk, (divergence + math.log(1 / delta)) / n), rel=1e-6)
    assert catoni_bound(risk, divergence, n, delta)[0] >= min(bounds)


def test_catoni_with_its_union_is_near_maurer() -> None:
    catoni, c = catoni_bound(0.02, 5000.0, 60_000, 0.05)
    assert catoni == pytest.approx(maurer_bound(0.02, 5000.0, 60_000, 0.05), rel=2e-3)
    assert 0.05 <= c <= 20.0
