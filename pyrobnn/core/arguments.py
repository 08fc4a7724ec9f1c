"""Checks of arguments that many constructors share; each message begins with the argument's name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from numbers import Real
from typing import Any

import torch

__all__ = [
    "check_device",
    "check_finite_number",
    "check_int",
    "check_non_negative",
    "check_number",
    "check_positive",
    "check_positive_int",
    "check_probability",
    "counted",
]


def check_device(name: str, value: object) -> None:
    """Refuses what names no device; None is allowed.

    Raises:
        TypeError: If it is no name and no :class:`torch.device`.
        ValueError: If there is no such kind of device.
    """
    if value is None or isinstance(value, torch.device):
        return
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a device such as 'cpu' or 'cuda:0', got {value!r}.")
    try:
        torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"{name}: expected a device such as 'cpu' or 'cuda:0', got {value!r}.") from error


def check_int(name: str, value: object, low: float, high: int | None = None) -> None:
    """Refuses what is no int from ``low`` to ``high``; True and 1.0 are none.

    Args:
        name: The argument.
        value: What was given.
        low: The smallest that is allowed; ``-math.inf``: any.
        high: The largest that is allowed; None: any.

    Raises:
        ValueError: If it is not.
    """
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):  # type: ignore[operator]
        if high is not None:
            expected = f"an int from {low} to {high}"
        else:
            expected = {1: "a positive int", -math.inf: "an int"}.get(low, f"an int of at least {low}")
        raise ValueError(f"{name}: expected {expected}, got {value!r}.")


def check_positive_int(name: str, value: object) -> None:
    """Refuses what is no int of at least 1; True is none.

    Raises:
        ValueError: If it is not.
    """
    check_int(name, value, 1)


def check_positive(name: str, value: object, what: str = "number") -> None:
    """Refuses what is no positive, finite number.

    Args:
        name: The argument.
        value: What was given.
        what: What the number is, for the message.

    Raises:
        ValueError: If it is not.
    """
    if not _is_number(value) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a positive {what}, got {value!r}.")


def check_non_negative(name: str, value: object, what: str = "number") -> None:
    """Refuses what is no finite number of at least 0.

    Args:
        name: The argument.
        value: What was given.
        what: What the number is, for the message.

    Raises:
        ValueError: If it is not.
    """
    if not _is_number(value) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a {what} of at least 0, got {value!r}.")


def check_finite_number(name: str, value: object) -> None:
    """Refuses what is no finite number.

    Raises:
        ValueError: If it is not.
    """
    if not _is_number(value) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{name}: expected a finite number, got {value!r}.")


def check_number(
    name: str, value: object, low: float, high: float, *, above: bool = False, below: bool = False
) -> None:
    """Refuses what is no number from ``low`` to ``high``.

    Args:
        name: The argument.
        value: What was given.
        low: The lower end.
        high: The upper end, finite.
        above: Whether ``low`` itself is refused.
        below: Whether ``high`` itself is refused.

    Raises:
        ValueError: If it is not.
    """
    inside = _is_number(value) and low <= value <= high  # type: ignore[operator]
    if not inside or (above and value == low) or (below and value == high):
        lower, upper = "above" if above else "from", "to below" if below else "to"
        raise ValueError(f"{name}: expected a number {lower} {low:g} {upper} {high:g}, got {value!r}.")


def check_probability(name: str, value: object) -> None:
    """Refuses what is no probability strictly between 0 and 1.

    Raises:
        ValueError: If it is not.
    """
    if not _is_number(value) or not 0 < value < 1:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a probability between 0 and 1, got {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)  # NumPy's scalars are Real


def counted(sample: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """A method ``sample(num_samples)`` that refuses what is no number of draws.

    Raises:
        ValueError: If ``num_samples`` is no int of at least 0.
    """

    @wraps(sample)
    def checked(self: Any, num_samples: int) -> Any:
        check_int("num_samples", num_samples, 0)
        return sample(self, num_samples)

    return checked
