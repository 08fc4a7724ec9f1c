"""The slope of the benchmark of growth, on powers that are known."""

from __future__ import annotations

import pytest

from benchmarks.growth import slope


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_slope_of_a_power_is_its_exponent(power: float) -> None:
    sizes = [2, 8, 16, 64]
    assert slope(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power)
