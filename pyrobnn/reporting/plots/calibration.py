"""Figures of the calibration of real-valued predictions: the histogram of the PIT, and quantiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrobnn.core.arguments import check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.metrics.pit import PitHistogram, QuantileCalibration
from pyrobnn.reporting.figures import BLACK, BLUE, new_axes
from pyrobnn.reporting.plots.arrays import to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["pit_histogram", "quantile_calibration"]


@explained
def pit_histogram(histogram: PitHistogram, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """Density of the probability integral transform, flat at 1 where predictions are calibrated.

    High at both ends: predictions are too narrow; high in the middle: too wide; a slope: biased. The band holds the
    given share of the heights of a single bin of independent targets that are calibrated.

    Args:
        histogram: What :func:`pyrobnn.metrics.pit_histogram` returns, or a report's ``pit``.
        level: Probability of the band.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        TypeError: If it is no histogram of the PIT.
        ValueError: If ``level`` is not between 0 and 1.

    Source: Gneiting, Balabdaoui & Raftery (2007), "Probabilistic forecasts, calibration and sharpness".
    """
    if not isinstance(histogram, PitHistogram):
        raise TypeError(f"histogram: expected what metrics.pit_histogram returns, got {type(histogram).__name__}.")
    check_probability("level", level)
    edges, share = to_numpy(histogram.bin_edges), to_numpy(histogram.share)
    bins = len(share)
    low, high = _band(np.full(1, 1.0 / bins), histogram.count, level)

    ax = new_axes(ax)
    ax.bar(edges[:-1], share * bins, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white", label="targets")
    style: dict[str, Any] = {"facecolor": (BLACK, 0.15), "edgecolor": BLACK}
    ax.axhspan(low[0] * bins, high[0] * bins, **style, label=f"{level:.0%} of a calibrated bin")
    ax.axhline(1.0, color=BLACK, linestyle="--", linewidth=1)
    ax.set(xlim=(0, 1), xlabel="probability of at most the target", ylabel="density")
    ax.legend()
    return ax


@explained
def quantile_calibration(calibration: QuantileCalibration, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """Share of targets below predicted quantiles against their levels, on the diagonal if calibrated.

    Steeper than the diagonal in the middle: predictions are too wide; flatter: too narrow. The band holds the given
    share of what independent, calibrated targets give at a single level.

    Args:
        calibration: What :func:`pyrobnn.metrics.quantile_calibration` returns, or a report's ``quantiles``.
        level: Probability of the band.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        TypeError: If it is no calibration of quantiles.
        ValueError: If ``level`` is not between 0 and 1.

    Source: Kuleshov, Fenner & Ermon (2018), "Accurate uncertainties for deep learning using calibrated regression".
    """
    if not isinstance(calibration, QuantileCalibration):
        kind = type(calibration).__name__
        raise TypeError(f"calibration: expected what metrics.quantile_calibration returns, got {kind}.")
    check_probability("level", level)
    levels, observed = to_numpy(calibration.levels), to_numpy(calibration.observed)
    low, high = _band(levels, calibration.count, level)

    ax = new_axes(ax)
    style: dict[str, Any] = {"facecolor": (BLACK, 0.15), "edgecolor": BLACK}
    ax.fill_between(levels, low, high, **style, label=f"{level:.0%} of calibrated predictions")
    ax.plot([0, 1], [0, 1], color=BLACK, linestyle="--", linewidth=1)
    ax.plot(levels, observed, "o-", color=BLUE, markersize=4, label="targets")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=f"mean error = {float(calibration.error):.3f}")
    ax.set(xlabel="level of the quantile", ylabel="share of targets below it")
    ax.legend(loc="upper left")
    return ax


def _band(share: NDArray[np.float64], count: float, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Central shares of a binomial variable of ``count`` trials; a count that is no whole number is rounded."""
    from scipy import stats

    trials = max(1, round(count))
    low, high = stats.binom.ppf([[(1 - level) / 2], [(1 + level) / 2]], trials, share)
    return low / trials, high / trials
