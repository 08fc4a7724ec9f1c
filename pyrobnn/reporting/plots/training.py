"""Figures of training: the ELBO by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from pyrobnn.core.explanations import explained
from pyrobnn.reporting.figures import BLACK, BLUE, VERMILLION, new_axes
from pyrobnn.reporting.plots.arrays import require_same_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ElboHistory", "elbo"]


class ElboHistory(Protocol):
    """What :func:`elbo` reads: one number per epoch in each list, in nats per datum."""

    elbo: list[float]
    log_likelihood: list[float]
    kl: list[float]


@explained
def elbo(history: ElboHistory, *, ax: Axes | None = None) -> Axes:
    """The ELBO and its two parts by epoch, in nats per datum.

    Args:
        history: Has ``.elbo``, ``.log_likelihood`` (expected) and ``.kl`` (or the divergence in its place).
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: If the lists are empty or differ in length.
    """
    from matplotlib.ticker import MaxNLocator

    parts = {"elbo": history.elbo, "log_likelihood": history.log_likelihood, "kl": history.kl}
    # Values that are not finite become gaps, so that a diverged run is visible.
    series = {f"history.{name}": np.asarray(values, dtype=float) for name, values in parts.items()}
    require_same_length(series)
    epochs = np.arange(1, len(history.elbo) + 1)
    labels = ("ELBO", "expected log likelihood", "divergence from the prior")
    colors = (BLACK, BLUE, VERMILLION)
    marker = "o" if len(epochs) == 1 else None  # one point makes no line

    ax = new_axes(ax)
    for values, label, color, line in zip(series.values(), labels, colors, ("-", "--", ":"), strict=True):
        ax.plot(epochs, values, color=color, linestyle=line, marker=marker, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel="nats per datum")
    ax.legend()
    return ax
