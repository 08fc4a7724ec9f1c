"""The table of an evaluation of detectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from pyrobnn.metrics.detection import detection_report

__all__ = ["DetectionReport", "DetectionRow"]

MEASURES = ("auroc", "aupr_out", "aupr_in", "fpr95_out", "fpr95_in")
_TITLES = {"auroc": "AUROC", "aupr_out": "AUPR out", "aupr_in": "AUPR in", "fpr95_out": "FPR95"}


@dataclass(frozen=True)
class DetectionRow:
    """How well one form of one score finds one set of outliers.

    Attributes:
        out: The set.
        score: The score.
        form: Of the averaged prediction, or the mean or variance over draws.
        num_in: Number of known inputs.
        num_out: Number of outliers.
        auroc: Area under the ROC curve.
        aupr_out: Area under precision and recall with outliers as the positive class.
        aupr_in: The same with known inputs as the positive class.
        fpr95_out: Share of known inputs that raise an alarm where 95 % of the outliers are found.
        fpr95_in: Share of outliers that are accepted where 95 % of the known inputs are.
        intervals: ``(low, high)`` by measure, by bootstrap over inputs.
    """

    out: str
    score: str
    form: str
    num_in: int
    num_out: int
    auroc: float
    aupr_out: float
    aupr_in: float
    fpr95_out: float
    fpr95_in: float
    intervals: dict[str, tuple[float, float]] = field(repr=False)

    @classmethod
    def of(
        cls, out: str, score: str, form: str, known: Tensor, unknown: Tensor, intervals: dict[str, tuple[float, float]]
    ) -> DetectionRow:
        """The row of the scores of known inputs ``[N]`` and of outliers ``[M]``."""
        found = detection_report(known, unknown)
        return cls(
            out,
            score,
            form,
            len(known),
            len(unknown),
            found["auroc"],
            found["aupr_out"],
            found["aupr_in"],
            found["fpr95_out"],
            found["fpr95_in"],
            intervals,
        )

    @property
    def label(self) -> str:
        """The score, and its form if that is not the averaged prediction."""
        return self.score if self.form == "averaged" else f"{self.score} ({self.form})"


@dataclass(frozen=True)
class DetectionReport:
    """Scores by sets of outliers; prints as a table.

    Attributes:
        rows: One for each set, score and form.
        level: Probability of the intervals.
        left_out: Pairs ``(score, set)`` that are no test, since the score was tuned on the set.
    """

    rows: list[DetectionRow]
    level: float = 0.95
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def __getitem__(self, key: tuple[str, str] | tuple[str, str, str]) -> DetectionRow:
        """The row of ``(set, score)`` or ``(set, score, form)``, by default of the averaged prediction.

        Raises:
            KeyError: If there is none; the message lists sets and scores.
        """
        out, score, form = (*key, "averaged")[:3]
        for row in self.rows:
            if (row.out, row.score, row.form) == (out, score, form):
                return row
        known = ", ".join(dict.fromkeys(repr((row.out, row.score, row.form)) for row in self.rows))
        raise KeyError(f"no row {key!r}; there are {known}.")

    def best(self, out: str, measure: str = "auroc") -> DetectionRow:
        """The row of the best value of a measure for a set of outliers.

        Raises:
            ValueError: If there is no such set or measure.
        """
        rows = [row for row in self.rows if row.out == out]
        if not rows:
            raise ValueError(f"out: no outliers are named {out!r}; there are {sorted({row.out for row in self.rows})}.")
        if measure not in MEASURES:
            raise ValueError(f"measure: expected one of {', '.join(map(repr, MEASURES))}, got {measure!r}.")
        sign = -1.0 if measure.startswith("fpr") else 1.0
        return max(rows, key=lambda row: sign * getattr(row, measure))

    def by_set(self, measure: str = "auroc") -> Mapping[str, Mapping[str, tuple[float, float, float]]]:
        """``(value, low, high)`` of each score and form by set of outliers, as ``plots.detection`` takes it."""
        found: dict[str, dict[str, tuple[float, float, float]]] = {}
        for row in self.rows:
            found.setdefault(row.out, {})[row.label] = (getattr(row, measure), *row.intervals[measure])
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        widths = [max(len(getattr(row, name)) for row in self.rows) for name in ("out", "label")]
        head = "  ".join(f"{title:>8} {f'{self.level:.0%} interval':<15}" for title in _TITLES.values())
        lines = [f"{'outliers':<{max(8, widths[0])}}  {'score':<{widths[1]}}  {head}"]
        for row in self.rows:
            cells = [f"{getattr(row, name):>8.3f} {'{:.3f} – {:.3f}'.format(*row.intervals[name])}" for name in _TITLES]
            lines.append(f"{row.out:<{max(8, widths[0])}}  {row.label:<{widths[1]}}  {'  '.join(cells)}")
        lines += [f"{score} was tuned on {out}, which is therefore no test of it." for score, out in self.left_out]
        return "\n".join(lines)
