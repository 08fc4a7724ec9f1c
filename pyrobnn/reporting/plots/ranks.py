"""Figures of simulation-based calibration: ranks of true values among posterior draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrobnn.core.arguments import check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.reporting.figures import BLACK, BLUE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["rank_ecdf", "rank_histogram"]


@explained
def rank_histogram(ranks: Tensor, num_samples: int, *, num_bins: int = 10, ax: Axes | None = None) -> Axes:
    """Ranks of true values among posterior draws by bin; flat where an inference is calibrated.

    The band holds 99 % of the counts of a single bin of uniform ranks.

    Args:
        ranks: Ranks from 0 to `num_samples`, ``[n]``.
        num_samples: Posterior draws L of each simulation.
        num_bins: Number of bins.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: If a rank is out of range, or `num_bins` does not divide L + 1.

    Source: Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based calibration".
    """
    from scipy import stats

    values = _ranks(ranks, num_samples)
    if num_bins < 1 or (num_samples + 1) % num_bins:
        raise ValueError(f"num_bins: expected a divisor of num_samples + 1 = {num_samples + 1}, got {num_bins}.")
    counts = np.bincount(values * num_bins // (num_samples + 1), minlength=num_bins)
    edges = np.linspace(0, num_samples + 1, num_bins + 1) - 0.5
    low, high = stats.binom.ppf([0.005, 0.995], len(values), 1.0 / num_bins)

    ax = new_axes(ax)
    ax.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white", label="ranks")
    ax.axhspan(low, high, facecolor=(BLACK, 0.15), edgecolor=BLACK, label="99 % of a uniform bin")
    ax.axhline(len(values) / num_bins, color=BLACK, linestyle="--", linewidth=1)
    ax.set(xlim=(edges[0], edges[-1]), xlabel=f"rank among {num_samples} draws", ylabel="number of simulations")
    ax.legend()
    return ax


@explained
def rank_ecdf(ranks: Tensor, num_samples: int, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """Empirical distribution of ranks less that of uniform ones, in its simultaneous band.

    A calibrated inference stays within the band altogether with probability `level`. Above zero throughout: the
    posteriors lie too high, below: too low; above on the left and below on the right: too narrow, the reverse: too
    wide.

    Args:
        ranks: Ranks from 0 to `num_samples`, ``[n]``.
        num_samples: Posterior draws L of each simulation.
        level: Probability of the band.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: If a rank or `level` is out of range.

    Source: Säilynoja, Bürkner & Vehtari (2022), "Graphical test for discrete uniformity"; the band is one of equal
    standard errors, found by 1000 simulations.
    """
    values = _ranks(ranks, num_samples)
    check_probability("level", level)
    uniform = np.arange(1, num_samples + 1) / (num_samples + 1)  # P(rank < k) for k = 1, ..., L
    error = np.sqrt(uniform * (1.0 - uniform) / len(values))
    simulated = np.random.default_rng(0).integers(0, num_samples + 1, (1000, len(values)))
    farthest = [np.abs((_ecdf(row, num_samples) - uniform) / error).max() for row in simulated]
    half = np.quantile(farthest, level) * error

    ax = new_axes(ax)
    band: dict[str, Any] = {"facecolor": (BLACK, 0.15), "edgecolor": BLACK}
    ax.fill_between(uniform, -half, half, **band, label=f"{level:.0%} of calibrated inferences")
    ax.plot(uniform, _ecdf(values, num_samples) - uniform, color=BLUE, drawstyle="steps-mid", label="ranks")
    ax.axhline(0.0, color=BLACK, linestyle="--", linewidth=1)
    ax.set(xlim=(0, 1), xlabel="fractional rank", ylabel="ECDF difference")
    ax.legend()
    return ax


def _ranks(ranks: Tensor, num_samples: int) -> NDArray[np.int64]:
    values = ranks.detach().cpu().numpy()
    if values.ndim != 1 or not len(values) or values.min() < 0 or values.max() > num_samples:
        raise ValueError(
            f"ranks: expected numbers from 0 to {num_samples}, of shape [n], got shape {list(ranks.shape)}."
        )
    return values.astype(np.int64)


def _ecdf(ranks: NDArray[np.int64], num_samples: int) -> NDArray[np.float64]:
    """Share of ranks below k for k = 1, ..., L."""
    return np.cumsum(np.bincount(ranks, minlength=num_samples + 1))[:-1] / len(ranks)
