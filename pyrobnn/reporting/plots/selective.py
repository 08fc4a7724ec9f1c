"""Figures of selective prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyrobnn.core.explanations import explained
from pyrobnn.metrics.selective import RiskCoverage
from pyrobnn.reporting.figures import BLACK, COLORS, LINES, new_axes
from pyrobnn.reporting.plots.arrays import to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["risk_coverage"]


@explained
def risk_coverage(
    curves: Mapping[str, RiskCoverage], *, ylabel: str = "mean error of the answers", ax: Axes | None = None
) -> Axes:
    """Mean error of the most certain share of the examples, against that share, for one or more uncertainties.

    A curve that falls to the left says that the uncertainty knows where errors are. The dotted line is that of the best
    order there is, which takes the errors themselves.

    Args:
        curves: Name to what :func:`pyrobnn.metrics.risk_coverage` returns, of the same errors.
        ylabel: Name and unit of the error.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        TypeError: If one is no curve.
        ValueError: If there is no curve or more than seven.
    """
    if not 1 <= len(curves) <= len(COLORS):
        raise ValueError(f"curves: expected 1 to {len(COLORS)}, got {len(curves)}.")
    for name, curve in curves.items():
        if not isinstance(curve, RiskCoverage):
            kind = type(curve).__name__
            raise TypeError(f"curves of {name!r}: expected what metrics.risk_coverage returns, got {kind}.")
    ax = new_axes(ax)
    for i, (name, curve) in enumerate(curves.items()):
        label = f"{name} (area {float(curve.aurc):.3g})"
        style = {"color": COLORS[i], "linestyle": LINES[i % 3]}
        ax.plot(to_numpy(curve.coverage), to_numpy(curve.risk), label=label, **style)
    best = next(iter(curves.values()))
    ax.plot(to_numpy(best.coverage), to_numpy(best.optimal_risk), color=BLACK, linestyle=":", label="best order")
    ax.set(xlim=(0, 1), xlabel="share of examples that are answered", ylabel=ylabel)
    ax.set_ylim(bottom=0)
    ax.legend()
    return ax
