"""Figures of generalization: errors over the number of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.reporting.figures import BLACK, BLUE, VERMILLION, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["WidthSweep", "double_descent"]


class WidthSweep(Protocol):
    """What :func:`double_descent` reads."""

    @property
    def num_parameters(self) -> tuple[int, ...]:
        """Parameters by width."""

    @property
    def train_error(self) -> Tensor:
        """Errors ``[V, R]`` on the rows that were fitted."""

    @property
    def test_error(self) -> Tensor:
        """Errors ``[V, R]`` on other rows."""

    @property
    def num_data(self) -> int:
        """Numbers that the data determine."""


@explained
def double_descent(sweep: WidthSweep, *, ax: Axes | None = None) -> Axes:
    """Median errors over parameters per datum, on logarithmic axes; the range over repetitions is shaded.

    Args:
        sweep: The result of a sweep over widths (:mod:`pyrobnn.diagnostics.generalization`).
        ax: Axes to draw into.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ratio = np.array(sweep.num_parameters) / sweep.num_data
    series = (("test", sweep.test_error, VERMILLION, "-"), ("training", sweep.train_error, BLUE, "--"))
    for label, errors, color, line in series:
        values = errors.numpy()
        ax.plot(ratio, np.median(values, 1), color=color, linestyle=line, marker=".", label=label)
        ax.fill_between(ratio, values.min(1), values.max(1), color=color, alpha=0.2, linewidth=0.0)
    ax.axvline(1.0, color=BLACK, linestyle=":", linewidth=1.0)
    low = max(float(sweep.test_error.min()) / 10.0, 1e-12)  # a training error of 0 has no logarithm
    ax.set(xscale="log", yscale="log", xlabel="parameters per datum", ylabel="error")
    ax.set_ylim(bottom=low)
    ax.legend()
    return ax
