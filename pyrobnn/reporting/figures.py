"""What all figures share: colors, line styles and new axes.

Colors are those of Okabe and Ito (2008), made for color-blind readers; hatching and line style say it again. Importing
matplotlib takes a second, so the functions that draw import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLACK", "BLUE", "COLORS", "GREEN", "LINES", "ORANGE", "PURPLE", "SKY", "VERMILLION", "new_axes"]

BLACK, BLUE, SKY, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
VERMILLION, ORANGE, PURPLE = "#D55E00", "#E69F00", "#CC79A7"
COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
LINES: tuple[Any, ...] = ("-", "--", "-.", ":")


def new_axes(ax: Axes | None) -> Axes:
    """The axes themselves, or those of a new figure."""
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1] if ax is None else ax
