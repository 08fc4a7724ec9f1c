r"""Schedules: numbers that change with the training step.

Whatever takes a schedule takes a number, one of the schedules here, or any function ``step -> float``, counted from 0:
the temperature of the KL in the objectives, the step sizes of stochastic gradient samplers, and the temperature and
noise of :class:`~pyrobnn.guides.ConcreteStructure`. Its value is checked at each step. The schedules here are frozen
dataclasses: they can be printed, compared, saved and loaded.

:class:`Linear` ends after its last value, and longer training is refused, unless ``hold`` is set: half a schedule, or
one that is over long before the training, is more often a mistake than meant. The others have no end. With ``every`` =
n a value is kept for n steps, those of an epoch, say. KL annealing over the first n steps is ``Linear(0.0, 1.0, n + 1,
hold=True)``. The paper of :class:`~pyrobnn.guides.ConcreteStructure` lowers the temperature by ``Exponential(3.0,
1.5e-5, floor=1.0)`` and the scale of the noise by ``Linear(1.01, 0.5, 52, every=steps_per_epoch, hold=True)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyrobnn.core.arguments import check_non_negative, check_number, check_positive, check_positive_int
from pyrobnn.core.explanations import explained

__all__ = [
    "CosineCycles",
    "Exponential",
    "GaussianRampUp",
    "Linear",
    "PolynomialDecay",
    "Schedule",
    "check_length",
    "from_spec",
    "length",
    "resolve",
    "spec",
    "value_at",
]

Schedule = float | Callable[[int], float]
"""A constant, one of the schedules here, or a function of the step of your own."""


@explained
@dataclass(frozen=True)
class Exponential:
    r""":math:`\max(s\, e^{-rt}, f)`: falls with each step until it arrives at its floor, where it stays.

    Args:
        start: s, the first value.
        rate: r, the relative decrease per step (per ``every`` steps).
        floor: f, the smallest value.
        every: Steps that share a value.

    Raises:
        ValueError: If ``start`` or ``floor`` is not positive, ``rate`` is negative, or ``every`` is no positive int.
    """

    start: float
    rate: float
    floor: float
    every: int = 1

    def __post_init__(self) -> None:
        check_positive("start", self.start)
        check_non_negative("rate", self.rate)
        check_positive("floor", self.floor)
        check_positive_int("every", self.every)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return max(self.start * math.exp(-self.rate * (step // self.every)), self.floor)


@explained
@dataclass(frozen=True)
class Linear:
    r""":math:`s + (e - s)\, t / (T - 1)`: from s to e in equal steps.

    Args:
        start: s, the first value.
        end: e, the last value.
        num_values: Number T of values; the schedule ends after ``num_values * every`` steps.
        every: Steps that share a value.
        hold: Stay at ``end`` afterward; otherwise longer training is refused.

    Raises:
        ValueError: If ``start`` or ``end`` is negative, or a count is no positive int.
    """

    start: float
    end: float
    num_values: int
    every: int = 1
    hold: bool = False

    def __post_init__(self) -> None:
        check_non_negative("start", self.start)
        check_non_negative("end", self.end)
        check_positive_int("num_values", self.num_values)
        check_positive_int("every", self.every)

    def __call__(self, step: int) -> float:
        """The value at a step; raises ValueError after the last one, unless it is held."""
        index = step // self.every
        if index >= self.num_values and not self.hold:
            raise ValueError(
                f"schedule: it ends after {self.num_values * self.every} steps, but training goes on; make it longer, "
                "or pass hold=True to stay at its last value."
            )
        fraction = min(1.0, index / (self.num_values - 1)) if self.num_values > 1 else 1.0
        return self.start + (self.end - self.start) * fraction


@explained
@dataclass(frozen=True)
class PolynomialDecay:
    r""":math:`\varepsilon_t = \varepsilon_0 (1 + t / b)^{-\gamma}`, a step size (Welling & Teh 2011).

    Args:
        initial: :math:`\varepsilon_0`, the first step size.
        delay: b, the number of steps after which it has fallen to :math:`2^{-\gamma}` of that.
        power: γ in (0.5, 1], for which the sum of the steps diverges and that of their squares does not.

    Raises:
        ValueError: If an argument is out of its range.
    """

    initial: float
    delay: float
    power: float = 0.55

    def __post_init__(self) -> None:
        check_positive("initial", self.initial)
        check_positive("delay", self.delay)
        check_number("power", self.power, 0.5, 1.0, above=True)

    def __call__(self, step: int) -> float:
        """The size of step ``step``."""
        return self.initial * (1.0 + step / self.delay) ** -self.power


@explained
@dataclass(frozen=True)
class CosineCycles:
    r""":math:`\varepsilon_t = \tfrac{\varepsilon_0}{2} (1 + \cos(\pi (t \bmod L) / L))` (Zhang et al. 2020).

    Args:
        initial: :math:`\varepsilon_0`, at the beginning of each cycle.
        cycle_length: Steps L of a cycle.

    Raises:
        ValueError: If an argument is not positive.
    """

    initial: float
    cycle_length: int

    def __post_init__(self) -> None:
        check_positive("initial", self.initial)
        check_positive_int("cycle_length", self.cycle_length)

    def __call__(self, step: int) -> float:
        """The size of step ``step``."""
        return 0.5 * self.initial * (1.0 + math.cos(math.pi * (step % self.cycle_length) / self.cycle_length))


@explained
@dataclass(frozen=True)
class GaussianRampUp:
    r""":math:`e\, \exp(-5 (1 - t / T)^2)`: rises to e, where it stays from step T on (Laine & Aila 2017).

    Args:
        end: e, the value that is reached.
        num_steps: T, the steps of the rise (times ``every``).
        every: Steps that share a value.

    Raises:
        ValueError: If one is not positive, or a count is no int.
    """

    end: float
    num_steps: int
    every: int = 1

    def __post_init__(self) -> None:
        check_positive("end", self.end)
        check_positive_int("num_steps", self.num_steps)
        check_positive_int("every", self.every)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        left = 1.0 - min(1.0, step // self.every / self.num_steps)
        return self.end * math.exp(-5.0 * left * left)


_Known = Exponential | Linear | PolynomialDecay | CosineCycles | GaussianRampUp
_KINDS: dict[str, type[_Known]] = {
    "exponential": Exponential,
    "linear": Linear,
    "polynomial_decay": PolynomialDecay,
    "cosine_cycles": CosineCycles,
    "gaussian_ramp_up": GaussianRampUp,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def length(schedule: Schedule) -> int | None:
    """The number of steps that a schedule is made for; None if it has no end."""
    if isinstance(schedule, Linear) and not schedule.hold:
        return schedule.num_values * schedule.every
    return None


def check_length(name: str, schedule: Schedule, num_steps: int) -> None:
    """Refuses a training until step ``num_steps`` under a schedule that ends before.

    Args:
        name: The argument whose schedule it is.
        schedule: The schedule.
        num_steps: Gradient steps of the whole training, those already taken included.

    Raises:
        ValueError: If it ends before.
    """
    end = length(schedule)
    if end is not None and end < num_steps:
        raise ValueError(
            f"{name}: its schedule ends after {end} steps, but training continues until step {num_steps}; make it "
            "longer, or pass hold=True to stay at its last value."
        )


def spec(schedule: Schedule, step: int = 0) -> float | dict[str, Any]:
    """A JSON-able description; of a function of your own only its value at ``step`` can be kept."""
    if isinstance(schedule, _Known):
        return {"schedule": _NAMES[type(schedule)], **asdict(schedule)}
    return float(schedule(step)) if callable(schedule) else float(schedule)


def from_spec(description: Mapping[str, Any]) -> Schedule:
    """The schedule that :func:`spec` described.

    Raises:
        ValueError: If it is none of those known here, or its settings are not those of its kind.
    """
    options = dict(description)
    kind = options.pop("schedule", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"schedule: expected {' or '.join(map(repr, _KINDS))}, got {kind!r}.")
    try:
        return _KINDS[kind](**options)
    except TypeError as error:
        raise ValueError(f"schedule: {options!r} does not describe a {kind!r} schedule: {error}.") from None


def resolve(name: str, given: Any, *, allow_zero: bool = False, zero_constant: bool = False) -> Schedule:
    """A number, schedule or description ``given`` as the argument ``name``.

    Args:
        name: The argument, with which messages begin.
        given: What was given.
        allow_zero: Whether a schedule may have the value 0 at times.
        zero_constant: Whether a constant may be 0, too.

    Raises:
        ValueError: If it is none of these, or its first value (for :class:`Linear`, its last as well) is out of range.
    """
    schedule = from_spec(given) if isinstance(given, Mapping) else given
    if not callable(schedule):
        if not zero_constant and not isinstance(schedule, int | float):
            raise ValueError(f"{name}: expected a positive number or a schedule, got {schedule!r}.")
        (check_non_negative if zero_constant else check_positive)(name, schedule)
        return schedule
    value_at(name, schedule, 0, allow_zero=allow_zero)
    if isinstance(schedule, Linear):
        value_at(name, schedule, (schedule.num_values - 1) * schedule.every, allow_zero=allow_zero)
    return schedule


def value_at(name: str, schedule: Schedule, step: int, *, allow_zero: bool = False) -> float:
    """The value of a schedule that :func:`resolve` returned at a step, counted from 0; ``allow_zero``: it may be 0.

    Raises:
        ValueError: If the schedule has ended, or the value is no finite number or out of range.
    """
    if not callable(schedule):
        return float(schedule)
    try:
        given = schedule(step)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    try:
        value = math.nan if isinstance(given, str) else float(given)
    except (TypeError, ValueError, RuntimeError):  # the last from tensors of several elements
        value = math.nan
    if not (0 < value < math.inf or (allow_zero and value == 0)):
        expected = "a number of at least 0" if allow_zero else "a positive number"
        raise ValueError(f"{name}: expected {expected} at each step, but the schedule gave {given!r} at step {step}.")
    return value
