"""The record of a game."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["GameHistory"]

_SHOWN = 6  # terms in a line


@dataclass
class GameHistory:
    """The record of a game, one entry per epoch.

    Attributes:
        terms: Means over the epoch's rounds by name: the ``"<phase>.loss"`` of each phase, and what its loss reports.
        seconds: Wall time of the epoch, in seconds.
        rounds: Rounds in all.
        planned: Epochs that the game was to have.
        stopped: Why it ended: ``"epochs"``, ``"callback"`` or ``"interrupted"``.
    """

    terms: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    rounds: int = 0
    planned: int = 0
    stopped: str = ""

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.seconds)

    @property
    def latest(self) -> dict[str, float]:
        """The last epoch's terms by name, and its ``seconds``."""
        named = {**self.terms, "seconds": self.seconds}
        return {name: values[-1] for name, values in named.items() if values}

    def append(self, entries: dict[str, float], seconds: float) -> None:
        """Adds a finished epoch; a term that it lacks, or that is new, is NaN where it was not computed."""
        for name in {**self.terms, **entries}:
            past = self.terms.setdefault(name, [float("nan")] * self.epochs)
            past.append(entries.get(name, float("nan")))
        self.seconds.append(seconds)

    def last(self, name: str) -> float:
        """The last epoch's value of a term.

        Raises:
            KeyError: If there is none of that name.
        """
        if name not in self.terms:
            raise KeyError(f"no term {name!r}; there are {sorted(self.terms)}.")
        return self.terms[name][-1]

    def summary(self) -> str:
        """The last epoch in one line."""
        shown = list(self.terms.items())[:_SHOWN]
        return ", ".join(f"{name} {values[-1]:.4g}" for name, values in shown)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return asdict(self)
