"""Figures of classification: calibration, confidence and scores of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics.calibration import (
    ReliabilityCurve,
    bin_sums,
    check_num_bins,
    reliability_curve,
    top_confidence,
    width_edges,
)
from pyrobnn.metrics.wilson import wilson_interval
from pyrobnn.reporting.figures import BLACK, BLUE, COLORS, LINES, SKY, VERMILLION, new_axes
from pyrobnn.reporting.plots.arrays import to_numpy, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["confidence_histogram", "draw_confidence", "draw_reliability", "reliability", "uncertainty_histogram"]

STARTS = (*(i / 10 for i in range(10)), 0.99, 0.999, 0.9999)
"""Where the bins of confidences may begin."""


@explained
def reliability(
    probs: Tensor, y: Tensor, *, num_bins: int = 15, level: float | None = 0.95, ax: Axes | None = None
) -> Axes:
    """Reliability diagram: the accuracy within each bin of confidence.

    The hatched part of a bar spans the gap between the accuracy of the bin and its mean confidence. The gaps,
    averaged over examples, are the expected calibration error (ECE) in the title. Empty bins stay blank. A line is
    Wilson's interval of the bin's accuracy: a gap inside it may be chance.

    Args:
        probs: Predicted probabilities, ``[N, C]``.
        y: Class labels, ``[N]``.
        num_bins: Number of bins.
        level: Probability of the intervals; None for none.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: As :func:`pyrobnn.metrics.reliability_curve`.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", ICML.
    """
    return draw_reliability(reliability_curve(probs, y, num_bins=num_bins), level=level, ax=ax)


def draw_reliability(curve: ReliabilityCurve, *, level: float | None = 0.95, ax: Axes | None = None) -> Axes:
    """:func:`reliability` of a curve that is known already."""
    edges, accuracy, confidence = map(to_numpy, (curve.bin_edges, curve.accuracy, curve.confidence))
    gap, lower = np.abs(confidence - accuracy), np.minimum(confidence, accuracy)  # NaN where empty: no bar
    place: dict[str, Any] = {"x": edges[:-1], "width": np.diff(edges), "align": "edge"}
    hatched: dict[str, Any] = {"facecolor": (VERMILLION, 0.25), "edgecolor": VERMILLION, "hatch": "//"}

    ax = new_axes(ax)
    ax.bar(**place, height=accuracy, color=BLUE, edgecolor="white", label="accuracy")
    ax.bar(**place, height=gap, bottom=lower, **hatched, label="gap to confidence")
    if level is not None:
        low, high = map(to_numpy, wilson_interval(curve.accuracy, curve.count, level))
        middle = (edges[:-1] + edges[1:]) / 2
        ax.vlines(middle, low, high, color=BLACK, linewidth=1, label=f"{level:.0%} interval of the accuracy")
    ax.plot([0, 1], [0, 1], color=BLACK, linestyle="--", linewidth=1, label="perfect calibration")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=f"ECE = {float(curve.ece):.3f}")
    ax.set(xlabel="confidence (largest probability)", ylabel="accuracy")
    ax.legend(loc="upper left")
    return ax


@explained
def confidence_histogram(probs: Tensor, y: Tensor, *, num_bins: int = 20, ax: Axes | None = None) -> Axes:
    """How confident the wrong and the correct predictions are: bars from zero, the wrong ones in front.

    Counts are on a logarithmic scale, since most predictions of a good classifier are in the last bin. Bins begin at
    the last of 0, 0.1, ..., 0.9, 0.99, 0.999, 0.9999 that is below every confidence, so that a sure network has more
    than one bar. Two vertical lines mark accuracy and mean confidence; accuracy left of confidence means
    overconfidence.

    Args:
        probs: Predicted probabilities, ``[N, C]``.
        y: Class labels, ``[N]``.
        num_bins: Number of bins.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: As :func:`pyrobnn.metrics.reliability_curve`.
    """
    check_num_bins(num_bins)
    return draw_confidence(*top_confidence(probs, y), num_bins=num_bins, ax=ax)


def draw_confidence(confidence: Tensor, correct: Tensor, *, num_bins: int = 20, ax: Axes | None = None) -> Axes:
    """:func:`confidence_histogram` of confidences that are known already, and whether each is of the right class."""
    start = max((edge for edge in STARTS if edge < confidence.min()), default=0.0)
    cuts = start + (1.0 - start) * width_edges(num_bins, confidence.double())
    confidence_sum, correct_sum, number = bin_sums(confidence.double(), correct, cuts)
    edges, count, right = map(to_numpy, (cuts, number, correct_sum))
    wrong = count - right
    mean_accuracy, mean_confidence = right.sum() / count.sum(), float(confidence_sum.sum()) / count.sum()
    place: dict[str, Any] = {"x": edges[:-1], "width": np.diff(edges), "align": "edge"}
    hatched: dict[str, Any] = {"facecolor": (VERMILLION, 0.5), "edgecolor": VERMILLION, "hatch": "//"}

    ax = new_axes(ax)
    ax.bar(**place, edgecolor="white", height=right, color=SKY, label=f"correct ({right.sum():.0f})")
    ax.bar(**place, **hatched, height=wrong, label=f"wrong ({wrong.sum():.0f})")
    ax.axvline(mean_accuracy, color=BLACK, linestyle="-", label=f"accuracy {mean_accuracy:.3f}")
    ax.axvline(mean_confidence, color=BLACK, linestyle=":", label=f"mean confidence {mean_confidence:.3f}")
    ax.set(xlim=(start, 1), xlabel="confidence (largest probability)", ylabel="number of examples", yscale="log")
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.set_ylim(bottom=0.5)
    ax.legend(loc="upper left")
    return ax


@explained
def uncertainty_histogram(
    scores: Mapping[str, Tensor],
    *,
    xlabel: str = "uncertainty score",
    bins: int | Sequence[float] = 40,
    ax: Axes | None = None,
) -> Axes:
    """Histograms of one score over several groups, such as known and unknown data.

    The groups share their bins, and each is divided by its own size, so groups of different size compare.

    Args:
        scores: Group name to scores, each ``[N_group]``.
        xlabel: Name and unit of the score, such as ``"mutual information [nats]"``.
        bins: Number of equally wide bins over all groups together, or the bin edges.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no group or more than seven, if one is empty or not finite, or if scores lie
            outside the given edges.
    """
    if not 1 <= len(scores) <= len(COLORS):
        raise ValueError(f"scores: expected 1 to {len(COLORS)} groups, got {len(scores)}.")
    groups = {name: vector(values, f"scores[{name!r}]") for name, values in scores.items()}
    pooled = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(pooled, bins)
    if pooled.min() < edges[0] or pooled.max() > edges[-1]:
        span = f"{pooled.min():.4g} to {pooled.max():.4g}"
        raise ValueError(f"bins: expected edges that cover {span}, got {edges[0]:.4g} to {edges[-1]:.4g}.")

    ax = new_axes(ax)
    for i, (name, values) in enumerate(groups.items()):
        fraction = np.histogram(values, edges)[0] / len(values)
        style: dict[str, Any] = {"facecolor": (COLORS[i], 0.25), "edgecolor": COLORS[i], "linewidth": 1.5}
        style["linestyle"] = LINES[i % len(LINES)]
        ax.stairs(fraction, edges, fill=True, **style, label=f"{name} ({len(values)})")
    ax.set(xlabel=xlabel, ylabel="fraction of the group")
    ax.legend()
    return ax
