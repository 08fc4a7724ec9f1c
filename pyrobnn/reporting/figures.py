"""What all figures share: colors, line styles and new axes.

Colors are those of Okabe and Ito (2008), made for color-blind readers; hatching and line style say it again. Importing
matplotlib takes a second, so the functions that draw import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLACK",
    "BLUE",
    "COLORS",
    "GREEN",
    "LINES",
    "ORANGE",
    "PANEL",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "new_axes",
    "panel",
]

BLACK, BLUE, SKY, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
VERMILLION, ORANGE, PURPLE = "#D55E00", "#E69F00", "#CC79A7"
COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
PANEL = (3.6, 3.7)
"""Size in inches of a figure that is one of several in a row, and as wide as a phone."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":")


def new_axes(ax: Axes | None) -> Axes:
    """The axes themselves, or those of a new figure."""
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1] if ax is None else ax


def panel(draw: Callable[..., object]) -> Figure:
    """A new figure of the size :data:`PANEL`, with its legend below the axes, where it covers nothing.

    Args:
        draw: Draws into the axes that are passed as ``ax=``, as the functions of :mod:`pyrobnn.plots` do.
    """
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=PANEL, layout="constrained")
    draw(ax=ax)
    if (legend := ax.get_legend()) is not None:
        legend.remove()
        handles, names = ax.get_legend_handles_labels()
        columns = 2 if len(names) > 1 and max(map(len, names)) < 23 else 1
        figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9.5, frameon=False)
    return figure
