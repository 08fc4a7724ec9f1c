"""The first line of an error, whatever its text."""

from __future__ import annotations

import pytest

from pyrobnn.core.first_line import first_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("shapes differ\nat line 3"), "shapes differ"),
        (RuntimeError("\n  shapes differ  \n"), "shapes differ"),
        (AssertionError(), "AssertionError"),
        (ValueError(" \n "), "ValueError"),
        (KeyError("name"), "'name'"),
        (RuntimeError("a" * 1_000), "a" * 200),
    ],
)
def test_first_line(error: Exception, expected: str) -> None:
    assert first_line(error) == expected
