"""Checks of arguments: what passes, what does not, and what the message says."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from pyrobnn import arguments

NO_NUMBERS = ["1", None, True, [1], 1j]


@pytest.mark.parametrize(
    ("check", "right", "wrong", "expected"),
    [
        (arguments.check_positive_int, [1, 7], [0, -1, 1.0, math.nan, *NO_NUMBERS], "a positive int"),
        (partial(arguments.check_int, low=0), [0, 7], [-1, 0.0, math.inf, *NO_NUMBERS], "an int of at least 0"),
        (partial(arguments.check_int, low=2, high=5), [2, 5], [1, 6, 2.0, *NO_NUMBERS], "an int from 2 to 5"),
        (
            arguments.check_positive,
            [1, 1e-300, 2.5],
            [0, 0.0, -1, math.inf, math.nan, *NO_NUMBERS],
            "a positive number",
        ),
        (
            arguments.check_non_negative,
            [0, 0.0, 2.5],
            [-1, -1e-300, math.inf, math.nan, *NO_NUMBERS],
            "a number of at least 0",
        ),
        (
            arguments.check_probability,
            [0.5, 1e-300],
            [0, 1, 0.0, 1.0, -0.5, math.nan, *NO_NUMBERS],
            "a probability between 0 and 1",
        ),
        (
            partial(arguments.check_number, low=0.0, high=2.0),
            [0, 2, 0.0, 2.0, 1],
            [-0.1, 2.1, math.inf, math.nan, *NO_NUMBERS],
            "a number from 0 to 2",
        ),
        (
            partial(arguments.check_number, low=0.0, high=1.0, above=True),
            [1, 0.5],
            [0, 0.0, 1.1, math.nan, *NO_NUMBERS],
            "a number above 0 to 1",
        ),
        (
            partial(arguments.check_number, low=0.0, high=1.0, below=True),
            [0, 0.5],
            [1, 1.0, -0.1, math.nan, *NO_NUMBERS],
            "a number from 0 to below 1",
        ),
    ],
)
def test_checks(check: Any, right: list[Any], wrong: list[Any], expected: str) -> None:
    for value in right:
        check("rank", value)
    for value in wrong:
        with pytest.raises(ValueError) as error:
            check("rank", value)
        assert str(error.value) == f"rank: expected {expected}, got {value!r}."
