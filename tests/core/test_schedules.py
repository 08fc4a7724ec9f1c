"""Schedules: their values, what has an end, their descriptions, and what is refused at which step."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrobnn import schedules
from pyrobnn.core.schedules import CosineCycles, Exponential, GaussianRampUp, Linear, PolynomialDecay


def test_the_papers_schedules() -> None:
    temperature = Exponential(3.0, 1.5e-5, floor=1.0)
    for step in (0, 10_000, 200_000):
        assert temperature(step) == max(3.0 * math.exp(-1.5e-5 * step), 1.0)
    beta = Linear(1.01, 0.5, 52, every=10, hold=True)
    for epoch in (0, 1, 20, 51, 90):
        assert beta(10 * epoch + 9) == pytest.approx(max(1.01 - 0.01 * epoch, 0.5))


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


def test_gaussian_ramp_up() -> None:
    schedule = GaussianRampUp(2.0, 80, every=10)
    assert schedule(0) == schedule(9) == pytest.approx(2.0 * math.exp(-5.0))
    assert schedule(400) == pytest.approx(2.0 * math.exp(-1.25))
    assert schedule(800) == schedule(10**6) == 2.0
    assert schedules.from_spec(schedules.spec(schedule)) == schedule
    for wrong in ({"end": 0.0}, {"num_steps": 0}, {"every": 1.5}):
        with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}: "):
            GaussianRampUp(**{"end": 1.0, "num_steps": 2} | wrong)


def test_an_end_is_an_end_unless_held() -> None:
    ending = Linear(2.0, 1.0, 3, every=2)
    assert [ending(step) for step in range(6)] == [2.0, 2.0, 1.5, 1.5, 1.0, 1.0]
    assert schedules.length(ending) == 6
    with pytest.raises(ValueError, match=r"ends after 6 steps.*hold=True"):
        ending(6)
    schedules.check_length("beta", ending, 6)
    with pytest.raises(ValueError, match=r"beta: its schedule ends after 6 steps, but .* until step 7"):
        schedules.check_length("beta", ending, 7)
    held = Linear(2.0, 1.0, 3, hold=True)
    assert held(100) == 1.0
    for schedule in (held, Exponential(2.0, 0.1, 1.0), 0.5, lambda step: 1.0):
        assert schedules.length(schedule) is None
        schedules.check_length("beta", schedule, 10**9)


@given(st.floats(0.0, 5.0), st.floats(0.0, 5.0), st.integers(1, 20), st.integers(1, 5), st.integers(0, 300))
def test_values_lie_between_the_ends(start: float, end: float, count: int, every: int, step: int) -> None:
    value = Linear(start, end, count, every=every, hold=True)(step)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9
    if step >= (count - 1) * every:
        assert value == pytest.approx(end)


@given(num_steps=st.integers(1, 50), start=st.floats(0.0, 2.0), end=st.floats(0.0, 2.0))
def test_annealing_goes_from_start_to_end_in_equal_steps_and_stays(num_steps: int, start: float, end: float) -> None:
    schedule = Linear(start, end, num_steps + 1, hold=True)
    assert schedule(0) == pytest.approx(start)
    assert schedule(num_steps) == pytest.approx(end) == pytest.approx(schedule(10 * num_steps))
    slopes = [b - a for a, b in itertools.pairwise(schedule(step) for step in range(num_steps + 1))]
    assert slopes == pytest.approx([(end - start) / num_steps] * num_steps, abs=1e-9)


ONE_OF_EACH = [
    Linear(2.0, 1.0, 7, every=3),
    Exponential(3.0, 0.1, 0.5, every=2),
    PolynomialDecay(1e-3, 100.0),
    CosineCycles(1e-3, 50),
]


@pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=lambda schedule: type(schedule).__name__)
def test_descriptions_rebuild_schedules(schedule: Any) -> None:
    described = json.loads(json.dumps(schedules.spec(schedule)))
    assert schedules.from_spec(described) == schedule == schedules.resolve("beta", described)


def test_descriptions_of_other_things() -> None:
    assert schedules.spec(0.5) == 0.5
    assert schedules.spec(lambda step: 2.0 + step, 3) == 5.0
    for wrong in ({"schedule": "cosine"}, {}, {"schedule": ["linear"]}):
        with pytest.raises(ValueError, match=r"schedule: expected 'exponential' or 'linear' or .*, got"):
            schedules.from_spec(wrong)
    with pytest.raises(ValueError, match=r"schedule: .* does not describe a 'linear' schedule"):
        schedules.from_spec({"schedule": "linear", "begin": 1.0})


NUMBERS = [-1.0, math.nan, math.inf, "1", None, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda v=v: Linear(v, 1.0, 3), "start: expected a number of at least 0") for v in NUMBERS),
        *((lambda v=v: Linear(1.0, v, 3), "end: expected a number of at least 0") for v in NUMBERS),
        *((lambda v=v: Linear(1.0, 1.0, v), "num_values: expected a positive int") for v in (0, 1.0, "3", True)),
        (lambda: Linear(1.0, 1.0, 2, every=0), "every: expected a positive int, got 0"),
        *((lambda v=v: Exponential(1.0, v, 0.5), "rate: expected a number of at least 0") for v in NUMBERS),
        *((lambda v=v: Exponential(v, 1.0, 0.5), "start: expected a positive number") for v in (0.0, *NUMBERS)),
        *((lambda v=v: Exponential(1.0, 1.0, v), "floor: expected a positive number") for v in (0.0, *NUMBERS)),
        (lambda: Exponential(1.0, 1.0, 0.5, every=0), "every: expected a positive int"),
        (lambda: PolynomialDecay(0.0, 1.0), "initial: expected a positive number"),
        (lambda: PolynomialDecay(1.0, -1.0), "delay: expected a positive number"),
        *((lambda v=v: PolynomialDecay(1.0, 1.0, v), "power: expected a number above 0.5 to 1, got") for v in NUMBERS),
        (lambda: PolynomialDecay(1.0, 1.0, 0.5), "power: expected a number above 0.5 to 1, got 0.5"),
        (lambda: CosineCycles(math.nan, 3), "initial: expected a positive number"),
        (lambda: CosineCycles(1.0, 0), "cycle_length: expected a positive int"),
    ],
)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("given_", [0.0, *NUMBERS, [1.0], {"schedule": "linear"}])
@pytest.mark.parametrize("allow_zero", [False, True])
def test_what_is_no_schedule_is_refused_by_the_arguments_name(given_: Any, allow_zero: bool) -> None:
    with pytest.raises(ValueError, match=r"schedule: .* does not" if isinstance(given_, dict) else "^beta: expected"):
        schedules.resolve("beta", given_, allow_zero=allow_zero)


@pytest.mark.parametrize("value", NUMBERS[:-1])
def test_each_value_is_checked(value: Any) -> None:
    def schedule(step: int) -> Any:
        return 1.0 if step < 3 else value

    assert schedules.resolve("beta", schedule) is schedule
    assert schedules.value_at("beta", schedule, 2) == 1.0
    with pytest.raises(ValueError, match=r"beta: expected a positive number at each step, but .* at step 3"):
        schedules.value_at("beta", schedule, 3)
    with pytest.raises(ValueError, match=r"beta: expected a number of at least 0 at each step, but .* at step 3"):
        schedules.value_at("beta", schedule, 3, allow_zero=True)
    with pytest.raises(ValueError, match=r"beta: .* at step 0"):
        schedules.resolve("beta", lambda step: value)


def test_zero_is_for_those_who_allow_it() -> None:
    rising, falling = Linear(0.0, 1.0, 3), Linear(1.0, 0.0, 3)
    assert schedules.resolve("temperature", rising, allow_zero=True) is rising
    assert schedules.value_at("temperature", rising, 0, allow_zero=True) == 0.0
    with pytest.raises(ValueError, match=r"beta: expected a positive number .* gave 0\.0 at step 0"):
        schedules.resolve("beta", rising)
    with pytest.raises(ValueError, match=r"beta: expected a positive number .* gave 0\.0 at step 2"):
        schedules.resolve("beta", falling)
