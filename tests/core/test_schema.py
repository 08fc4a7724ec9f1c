"""Checks accept what fits and name the place of what does not."""

from __future__ import annotations

from typing import Any

import pytest

from pyrobnn.core.schema import (
    Check,
    Mismatch,
    anything,
    either,
    flag,
    instance,
    items,
    number,
    optional,
    record,
    setting,
    table,
    tagged,
    text,
    whole,
)

SITE = record({"shape": items(whole(0)), "name": text}, {"frozen": flag})
TAGGED = tagged("kind", {"a": {"x": number}, "b": {}}, {"name": text})


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (SITE, {"shape": [2, 0], "name": ""}),
        (SITE, {"name": "w", "frozen": True, "shape": []}),
        (table(optional(text)), {"a": None, "b": "c"}),
        (either("an int or a string", whole(1, 3), text), 3),
        (items(anything, 2), [None, {}]),
        (TAGGED, {"kind": "a", "name": "n", "x": 1.5}),
        (TAGGED, {"kind": "unknown", "name": "n", "y": []}),
        (setting, {"a": [1, 2.5, None, "x", {"b": False}]}),
        (instance(set, "a set"), {1}),
    ],
)
def test_what_fits_is_accepted(check: Check, value: Any) -> None:
    check(value, "here")


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (SITE, {"shape": [2, -1], "name": ""}, r"^here\.shape\[1\]: expected an int of at least 0, got -1$"),
        (SITE, {"shape": [True], "name": ""}, r"^here\.shape\[0\]: .*got True"),
        (SITE, {"shape": [1.0], "name": ""}, r"^here\.shape\[0\]: .*got 1\.0"),
        (SITE, {"shape": []}, r"^here\.name: expected an entry, got nothing"),
        (SITE, {"shape": [], "name": "", "x": 3}, r"^here\.x: expected no such entry, only 'shape', 'name', 'frozen'"),
        (SITE, [], r"^here: expected a dict with 'shape', 'name', got \[\]"),
        (table(text), {"a": 3}, r"^here\.a: expected a string, got 3"),
        (table(text), {3: "a"}, r"^here: its key 3: expected a string"),
        (items(text, 2), ["a"], r"^here: expected a list of 2"),
        (whole(1, 3), 10**400, r"^here: expected an int from 1 to 3, got 1000.*…$"),
        (number, float("nan"), r"^here: expected a number, got nan"),
        (number, 10**400, r"^here: expected a number"),
        (either("an int or a string", whole(1), text), 0, r"^here: expected an int or a string, got 0"),
        (TAGGED, {"kind": "a", "name": "n"}, r"^here\.x: expected an entry"),
        (TAGGED, {"name": "n"}, r"^here\.kind: expected an entry"),
        (setting, {"a": [1, float("inf")]}, r"^here\.a\[1\]: expected a number, got inf"),
        (instance(set, "a set"), 3, r"^here: expected a set, got 3"),
    ],
)
def test_what_does_not_fit_is_named(check: Check, value: Any, message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        check(value, "here")
