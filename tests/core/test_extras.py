"""Packages that are extras."""

from __future__ import annotations

import sys

import pytest

from pyrobnn.core.extras import import_zuko


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match=r"^Some: it needs the package zuko.*pip install 'pyrobnn\[flows\]'"):
        import_zuko("Some")
