"""Checks of arguments that many constructors share."""

from __future__ import annotations

import math

__all__ = ["check_positive", "check_positive_int", "check_probability"]


def check_positive_int(name: str, value: object) -> None:
    """Refuses what is no int of at least 1; True is none.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value!r}.")


def check_positive(name: str, value: object) -> None:
    """Refuses what is no positive, finite number.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value!r}.")


def check_probability(name: str, value: object) -> None:
    """Refuses what is no probability strictly between 0 and 1.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{name}: expected a probability between 0 and 1, got {value!r}.")
