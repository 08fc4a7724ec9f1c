"""Schedules: their formulas at a few steps, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyrobnn.sampling import CosineCycles, PolynomialDecay


def test_polynomial_decay() -> None:
    schedule = PolynomialDecay(0.5, delay=10.0, power=0.6)
    assert schedule(0) == 0.5
    assert schedule(10) == pytest.approx(0.5 * 2.0**-0.6)
    assert schedule(990) == pytest.approx(0.5 * 100.0**-0.6)


def test_cosine_cycles() -> None:
    schedule = CosineCycles(0.5, cycle_length=8)
    assert [schedule(step) for step in (0, 8, 16)] == [0.5] * 3
    assert schedule(4) == pytest.approx(0.25)
    assert 0 < schedule(7) == schedule(15) < 0.02
    assert schedule(2) == pytest.approx(0.25 * (1.0 + 0.5**0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolynomialDecay(0.0, 1.0), "initial: expected a positive number"),
        (lambda: PolynomialDecay(1.0, -1.0), "delay: expected a positive number"),
        (lambda: PolynomialDecay(1.0, 1.0, 0.5), "power: expected a number above 0.5"),
        (lambda: CosineCycles(float("nan"), 3), "initial: expected a positive number"),
        (lambda: CosineCycles(1.0, 0), "cycle_length: expected a positive int"),
    ],
)
def test_bad_settings(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
