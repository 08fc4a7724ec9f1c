"""The navigation: entries of mkdocs.yml that end in ``*`` stand for the pages of a folder that no entry names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["complete", "named"]


def named(entries: Any) -> set[str]:
    """All pages that a navigation names, patterns left out."""
    if isinstance(entries, str):
        return set() if entries.endswith("*") else {entries}
    values: Iterable[Any] = entries.values() if isinstance(entries, dict) else entries
    return {page for value in values for page in named(value)}


def complete(entries: list[Any], pages: list[str]) -> list[Any]:
    """The navigation with patterns replaced by pages.

    Args:
        entries: As in mkdocs.yml: addresses, patterns such as ``how_to/*``, titles with one of these or a list.
        pages: Addresses of all pages, in their order.

    Raises:
        ValueError: If a page is in no folder of a pattern and is not named either.
    """
    rest = [page for page in pages if page not in named(entries)]
    result = _replaced(entries, rest)
    if forgotten := sorted(set(rest) - named(result)):
        raise ValueError(f"mkdocs.yml: no entry of nav names these pages or their folder: {', '.join(forgotten)}")
    return result


def _replaced(entries: list[Any], rest: list[str]) -> list[Any]:
    result: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict):
            pairs = {
                title: _replaced(value, rest) if isinstance(value, list) else value for title, value in entry.items()
            }
            result.append(pairs)
        elif entry.endswith("*"):
            result += [page for page in rest if page.rpartition("/")[0] == entry.rstrip("*").rstrip("/")]
        else:
            result.append(entry)
    return result
