"""What a document must look like, as functions that check its parts and name the place of the first mismatch.

A check takes a value and its place in the document (``"guide.sites.net.0.weight.shape"``). Checks are put together
from smaller ones, so a whole document is described in one expression:

.. code-block:: python

    SITE = record({"shape": items(whole(0)), "prior": text})
    check({"shape": [2, -1], "prior": "Normal"}, "site")  # site.shape[1]: expected an int of at least 0, got -1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = [
    "Check",
    "Mismatch",
    "anything",
    "either",
    "flag",
    "instance",
    "items",
    "number",
    "optional",
    "record",
    "setting",
    "table",
    "tagged",
    "text",
    "whole",
]

Check = Callable[[Any, str], None]
_LARGEST: dict[type, float] = {int: 2**63, float: math.inf}


class Mismatch(ValueError):
    """A part of a document is not what it must be.

    Args:
        where: Its place.
        expected: What it must be.
        got: What it is.
    """

    def __init__(self, where: str, expected: str, got: object) -> None:
        super().__init__(f"{where}: expected {expected}, got {_shortened(got)}")


def _shortened(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:60]}…"


def anything(value: Any, where: str) -> None:
    """Accepts all."""


def text(value: Any, where: str) -> None:
    """A string."""
    if not isinstance(value, str):
        raise Mismatch(where, "a string", value)


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Mismatch(where, "true or false", value)


def number(value: Any, where: str) -> None:
    """A finite number that fits 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST[type(value)]:
        raise Mismatch(where, "a number", value)


def setting(value: Any, where: str) -> None:
    """What constructors take: strings, numbers, bools, null, and lists and dicts of them."""
    if isinstance(value, list):
        items(setting)(value, where)
    elif isinstance(value, dict):
        table(setting)(value, where)
    elif not (value is None or isinstance(value, str | bool)):
        number(value, where)


def whole(low: int, high: float = math.inf) -> Check:
    """An int from ``low`` to ``high``."""
    words = f"an int of at least {low}" if high == math.inf else f"an int from {low} to {high:.0f}"

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Mismatch(where, words, value)

    return check


def instance(kind: type, words: str) -> Check:
    """An instance of a class, for decoded states that hold more than JSON."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, kind):
            raise Mismatch(where, words, value)

    return check


def optional(inner: Check) -> Check:
    """Null, or what ``inner`` accepts."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def either(words: str, *choices: Check) -> Check:
    """What any of the checks accepts; ``words`` say what that is."""

    def check(value: Any, where: str) -> None:
        for choice in choices:
            try:
                return choice(value, where)
            except Mismatch:
                continue
        raise Mismatch(where, words, value)

    return check


def items(inner: Check, length: int | None = None) -> Check:
    """A list (of ``length``) of what ``inner`` accepts."""
    words = "a list" if length is None else f"a list of {length}"

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise Mismatch(where, words, value)
        for index, item in enumerate(value):
            inner(item, f"{where}[{index}]")

    return check


def table(inner: Check) -> Check:
    """A dict with names of any kind."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Mismatch(where, "a dict", value)
        for key, item in value.items():
            text(key, f"{where}: its key {key!r}")
            inner(item, f"{where}.{key}")

    return check


def record(
    entries: Mapping[str, Check], optional: Mapping[str, Check] | None = None, others: Check | None = None
) -> Check:
    """A dict with these entries, some of which may be missing; ``others`` checks all further ones (None: refused)."""
    further = optional or {}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Mismatch(where, f"a dict with {_named(entries)}", value)
        inside = f"{where}." if where else ""
        for name in entries:
            if name not in value:
                raise Mismatch(f"{inside}{name}", "an entry", _Nothing())
        for name, item in value.items():
            own = entries.get(name) or further.get(name) or others
            if own is None:
                raise Mismatch(f"{inside}{name}", f"no such entry, only {_named([*entries, *further])}", item)
            own(item, f"{inside}{name}")

    return check


def tagged(key: str, kinds: Mapping[str, Mapping[str, Check]], common: Mapping[str, Check]) -> Check:
    """A dict whose entry ``key`` says which further entries it has besides the ``common`` ones; any, if unknown."""
    checks = {kind: record({key: text, **common, **own}) for kind, own in kinds.items()}

    def check(value: Any, where: str) -> None:
        record({key: text, **common}, others=anything)(value, where)
        if value[key] in checks:
            checks[value[key]](value, where)

    return check


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


def _named(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))
