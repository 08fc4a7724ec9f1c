r"""Schedules: numbers that change with the training step.

:math:`\max(s\, e^{-rt}, f)` (:func:`exponential`) has no end: it arrives at its floor and stays there. :math:`s + (e -
s)\, t / (T - 1)` (:func:`linear`) ends after T values, and a training that goes on for longer is refused, unless it is
told to hold its last value: half a schedule, or one that is over long before the training, is more often a mistake than
meant. With ``every`` = n a value is kept for n steps, those of an epoch, say. The paper of
:class:`~pyrobnn.guides.ConcreteStructure` lowers the temperature by ``exponential(3.0, 1.5e-5, floor=1.0)`` and the
scale of the noise by ``linear(1.01, 0.5, 52, every=steps_per_epoch, hold=True)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyrobnn.arguments import check_positive_int

__all__ = [
    "Exponential",
    "Linear",
    "Schedule",
    "exponential",
    "from_spec",
    "length",
    "linear",
    "positive_value",
    "resolve",
    "spec",
]


@dataclass(frozen=True)
class Exponential:
    """``max(start · exp(-rate · t), floor)`` at ``t = step // every``."""

    start: float
    rate: float
    floor: float
    every: int = 1

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return max(self.start * math.exp(-self.rate * (step // self.every)), self.floor)


@dataclass(frozen=True)
class Linear:
    """From ``start`` to ``end`` in ``num_values`` values, each for ``every`` steps."""

    start: float
    end: float
    num_values: int
    every: int = 1
    hold: bool = False

    def __call__(self, step: int) -> float:
        """The value at a step; raises ValueError after the last one."""
        index = step // self.every
        if index >= self.num_values and not self.hold:
            raise ValueError(
                f"schedule: it ends after {self.num_values * self.every} steps, but training goes on; make it longer, "
                "or pass hold=True to stay at its last value."
            )
        fraction = min(1.0, index / (self.num_values - 1)) if self.num_values > 1 else 1.0
        return self.start + (self.end - self.start) * fraction


Schedule = float | Exponential | Linear | Callable[[int], float]
"""A constant, one of the schedules here, or a function of the step of your own."""


def exponential(start: float, rate: float, floor: float, *, every: int = 1) -> Exponential:
    """A value that falls by ``exp(-rate)`` with each step until it arrives at ``floor``, where it stays.

    Args:
        start: The first value.
        rate: Relative decrease per step (per ``every`` steps).
        floor: The smallest value.
        every: Steps that share a value.

    Raises:
        ValueError: If ``start`` or ``floor`` is not positive, ``rate`` is negative, or ``every`` is no positive int.
    """
    check_positive_int("every", every)
    for name, value in (("start", start), ("floor", floor)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive value, got {value!r}.")
    if not rate >= 0:
        raise ValueError(f"rate: expected a decrease per step of at least 0, got {rate!r}.")
    return Exponential(float(start), float(rate), float(floor), every)


def linear(start: float, end: float, num_values: int, *, every: int = 1, hold: bool = False) -> Linear:
    """A value that goes from ``start`` to ``end`` in equal steps.

    Args:
        start: The first value.
        end: The last value.
        num_values: Number of values; the schedule ends after ``num_values * every`` steps.
        every: Steps that share a value.
        hold: Stay at ``end`` afterwards; otherwise training that goes on is refused.

    Raises:
        ValueError: If ``start`` or ``end`` is not positive, or a count is no positive int.
    """
    check_positive_int("num_values", num_values)
    check_positive_int("every", every)
    for name, value in (("start", start), ("end", end)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive value, got {value!r}.")
    return Linear(float(start), float(end), num_values, every, bool(hold))


def length(schedule: Schedule) -> int | None:
    """The number of steps that a schedule is made for; None if it has no end."""
    if isinstance(schedule, Linear) and not schedule.hold:
        return schedule.num_values * schedule.every
    return None


def spec(schedule: Schedule, step: int = 0) -> float | dict[str, Any]:
    """A JSON-able description; of a function of your own only its present value can be kept."""
    if isinstance(schedule, Exponential | Linear):
        return {"schedule": type(schedule).__name__.lower(), **asdict(schedule)}
    return float(schedule(step)) if callable(schedule) else float(schedule)


def from_spec(description: Mapping[str, Any]) -> Exponential | Linear:
    """The schedule that :func:`spec` described.

    Raises:
        ValueError: If it is none of those known here.
    """
    kinds: dict[str, type[Exponential | Linear]] = {"exponential": Exponential, "linear": Linear}
    options = dict(description)
    kind = options.pop("schedule", None)
    if kind not in kinds:
        raise ValueError(f"schedule: expected {' or '.join(map(repr, kinds))}, got {kind!r}.")
    return kinds[kind](**options)


def resolve(name: str, given: Any) -> Schedule:
    """A number, schedule or description, given as the argument ``name``.

    Raises:
        ValueError: If it is none of these, or its first value is not positive.
    """
    schedule = from_spec(given) if isinstance(given, Mapping) else given
    if not callable(schedule) and (isinstance(schedule, bool) or not isinstance(schedule, int | float)):
        raise ValueError(f"{name}: expected a positive number or a schedule, got {schedule!r}.")
    positive_value(name, schedule, 0)
    return schedule


def positive_value(name: str, schedule: Schedule, step: int) -> float:
    """The value of a schedule at a step.

    Raises:
        ValueError: If the schedule has ended or the value is not positive; the message begins with ``name``.
    """
    try:
        value = float(schedule(step)) if callable(schedule) else float(schedule)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not value > 0:
        raise ValueError(f"{name}: expected a positive value at each step, got {value!r} at step {step}.")
    return value
