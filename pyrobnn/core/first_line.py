"""What an error of another library says, short enough for a message of our own."""

from __future__ import annotations

__all__ = ["first_line"]

_LONGEST = 200


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty, cut at 200 characters; the error's type if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:_LONGEST]
