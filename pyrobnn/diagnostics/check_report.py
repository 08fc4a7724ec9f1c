"""Results of checks, and the table that they print as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Literal, TypeAlias

from pyrobnn.diagnostics.weights import WeightStatistics

__all__ = ["Check", "CheckReport", "Status"]

Status: TypeAlias = Literal["pass", "warn", "fail", "not applicable"]


@dataclass(frozen=True)
class Check:
    """One result: what was measured, whether it is fine, and why."""

    name: str
    status: Status
    value: float | None
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """All results; prints as a table.

    Attributes:
        checks: The results.
        weights: Statistics of each latent site.
    """

    checks: list[Check]
    weights: dict[str, WeightStatistics] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no check warns or fails."""
        return not any(result.status in ("warn", "fail") for result in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The result of the check ``name``.

        Raises:
            KeyError: If there is none; the message lists the names.
        """
        for result in self.checks:
            if result.name == name:
                return result
        raise KeyError(f"no check {name!r}; there are {', '.join(repr(c.name) for c in self.checks)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [("check", "result", "value", "reason")]
        rows += [(c.name, c.status, _number(c.value), c.reason) for c in self.checks]
        lines = [*_table(rows), ""]
        table = [("site", "weights", "at prior", "median |mean|/sd", "|mean| > sd")]
        for name, w in self.weights.items():
            shares = (_number(w.at_prior), _number(w.signal_to_noise), _number(w.above_noise))
            table.append((name, f"{w.size:,}", *shares))
        return "\n".join([*lines, *_table(table)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return list(chain(lines[:1], ["  ".join("-" * width for width in widths)], lines[1:]))
