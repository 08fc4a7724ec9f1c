"""Figure of how well scores find outliers: a point and an interval for each score and set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyrobnn.core.explanations import explained
from pyrobnn.reporting.figures import BLACK, COLORS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["detection"]


@explained
def detection(
    by_set: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    measure: str = "AUROC",
    chance: float | None = 0.5,
    ax: Axes | None = None,
) -> Axes:
    """One row for each score, one color for each set of outliers; the line is chance.

    Args:
        by_set: ``{set: {score: (value, low, high)}}``, as ``DetectionReport.by_set("auroc")`` gives it.
        measure: What the values are, for the axis.
        chance: Value of a score that knows nothing; None for no line.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        TypeError: If there is no such mapping.
        ValueError: If it is empty, or an entry is no finite ``(value, low, high)``.
    """
    if not isinstance(by_set, Mapping) or not all(isinstance(column, Mapping) for column in by_set.values()):
        raise TypeError(
            "by_set: expected {set: {score: (value, low, high)}}, as a detection report's by_set returns it."
        )
    entries = [entry for column in by_set.values() for entry in column.values()]
    if not entries:
        raise ValueError("by_set: it has no values.")
    for entry in entries:
        if not isinstance(entry, tuple | list) or len(entry) != 3 or not all(math.isfinite(v) for v in entry):
            raise ValueError(f"by_set: expected finite (value, low, high), got {entry!r}.")
    scores = list(dict.fromkeys(score for column in by_set.values() for score in column))
    ax = new_axes(ax)
    for index, (name, column) in enumerate(by_set.items()):
        shift = 0.6 * ((index + 0.5) / len(by_set) - 0.5)
        places = [scores.index(score) + shift for score in column]
        values, lows, highs = zip(*column.values(), strict=True) if column else ((), (), ())
        color = COLORS[index % len(COLORS)]
        ax.hlines(places, lows, highs, color=color, linewidth=1.5)
        ax.plot(values, places, "o", color=color, markersize=4, label=name)
    if chance is not None:
        ax.axvline(chance, color=BLACK, linestyle="--", linewidth=1)
    ax.set(yticks=range(len(scores)), yticklabels=scores, xlabel=measure)
    ax.invert_yaxis()
    ax.legend()
    return ax
