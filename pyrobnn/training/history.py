"""The record of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Callback", "History", "Totals"]


@dataclass
class History:
    """The record of a training run, one entry per epoch; nats per datum.

    Attributes:
        elbo: The (untempered) evidence lower bound, averaged over the epoch's data. For points and mixtures of points,
            which have no entropy, it is the log joint density, and :meth:`summary` calls it so.
        log_likelihood: Its expected log likelihood.
        kl: Its divergence: KL to the prior, or ``-log p(w)`` for a point estimate (``divergence_name``).
        loss: The tempered objective that was minimized.
        validation: Log predictive density of the validation data, if there are any.
        learning_rate: Learning rate of the first parameter group (torch optimizers only).
        seconds: Wall time of the epoch, in seconds.
        terms: Further terms of the objective by name, such as ``"regularizer"``; ``"temperature"``, the weight of the
            divergence in the epoch's last step, where that was not 1.
        steps: Gradient steps in all.
        planned: Epochs that the run was to have, as stated or by default.
        stopped: Why training ended: ``"epochs"``, ``"patience"``, ``"callback"`` or ``"interrupted"``.
        divergence_name: What ``kl`` holds.
    """

    elbo: list[float] = field(default_factory=list)
    log_likelihood: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    planned: int = 0
    stopped: str = ""
    divergence_name: str = "KL"

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.elbo)

    @property
    def latest(self) -> dict[str, float]:
        """The last epoch's entries by name."""
        named = {name: getattr(self, name) for name in _NAMED}
        return {name: values[-1] for name, values in {**named, **self.terms}.items() if values}

    def append(self, entries: dict[str, float]) -> None:
        """Adds a finished epoch's entries, by attribute."""
        for name, value in entries.items():
            if name in _NAMED:
                getattr(self, name).append(value)
            else:
                self.terms.setdefault(name, []).append(value)

    def summary(self) -> str:
        """The last epoch in one line."""
        name = "ELBO" if self.divergence_name == "KL" else "log joint"
        text = f"{name} {self.elbo[-1]:.4f} = {self.log_likelihood[-1]:.4f} - {self.kl[-1]:.4f}"
        return text + (f", validation {self.validation[-1]:.4f}" if self.validation else "") + " nats/datum"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return asdict(self)


@dataclass
class Totals:
    """Sums of one epoch.

    Attributes:
        values: Values per datum by name, times the rows they are of.
        rows: Rows.
        temperature: Weight of the divergence in the last step.
        divergence_name: What the divergence is.
    """

    values: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    temperature: float = 1.0
    divergence_name: str = "KL"

    def add(self, values: dict[str, float], rows: int) -> None:
        """Adds the values of a step."""
        self.rows += rows
        for name, value in values.items():
            self.values[name] = self.values.get(name, 0.0) + rows * value


_NAMED = ("elbo", "log_likelihood", "kl", "loss", "validation", "learning_rate", "seconds")

Callback = Callable[[History], bool | None]
