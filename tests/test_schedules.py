"""Schedules: their values, what has an end, and their descriptions."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrobnn import schedules


def test_the_papers_schedules() -> None:
    temperature = schedules.exponential(3.0, 1.5e-5, floor=1.0)
    for step in (0, 10_000, 200_000):
        assert temperature(step) == max(3.0 * math.exp(-1.5e-5 * step), 1.0)
    beta = schedules.linear(1.01, 0.5, 52, every=10, hold=True)
    for epoch in (0, 1, 20, 51, 90):
        assert beta(10 * epoch + 9) == pytest.approx(max(1.01 - 0.01 * epoch, 0.5))


def test_an_end_is_an_end_unless_held() -> None:
    ending = schedules.linear(2.0, 1.0, 3, every=2)
    assert [ending(step) for step in range(6)] == [2.0, 2.0, 1.5, 1.5, 1.0, 1.0]
    assert schedules.length(ending) == 6
    with pytest.raises(ValueError, match=r"ends after 6 steps.*hold=True"):
        ending(6)
    held = schedules.linear(2.0, 1.0, 3, hold=True)
    assert held(100) == 1.0
    assert schedules.length(held) is None
    assert schedules.length(schedules.exponential(2.0, 0.1, 1.0)) is None
    assert schedules.length(0.5) is None


@given(st.floats(0.1, 5.0), st.floats(0.1, 5.0), st.integers(1, 20), st.integers(1, 5), st.integers(0, 300))
def test_values_lie_between_the_ends(start: float, end: float, count: int, every: int, step: int) -> None:
    value = schedules.linear(start, end, count, every=every, hold=True)(step)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9
    if step >= (count - 1) * every:
        assert value == pytest.approx(end)


def test_descriptions_rebuild_schedules() -> None:
    for schedule in (schedules.linear(2.0, 1.0, 7, every=3), schedules.exponential(3.0, 0.1, 0.5, every=2)):
        described = json.loads(json.dumps(schedules.spec(schedule)))
        assert schedules.from_spec(described) == schedule
    assert schedules.spec(0.5) == 0.5
    assert schedules.spec(lambda step: 2.0 + step, 3) == 5.0
    with pytest.raises(ValueError, match="schedule: expected 'exponential' or 'linear', got 'cosine'"):
        schedules.from_spec({"schedule": "cosine"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.linear(0.0, 1.0, 3), "start: expected a positive value, got 0.0"),
        (lambda: schedules.linear(1.0, -1.0, 3), "end: expected a positive value, got -1.0"),
        (lambda: schedules.linear(1.0, 1.0, 0), "num_values: expected a positive int, got 0"),
        (lambda: schedules.exponential(1.0, -1.0, 0.5), "rate: expected a decrease"),
        (lambda: schedules.exponential(1.0, 1.0, 0.0), "floor: expected a positive value"),
        (lambda: schedules.exponential(1.0, 1.0, 0.5, every=0), "every: expected a positive int"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
