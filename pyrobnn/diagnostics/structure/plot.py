"""Figures of structure: the graph of a cell, and bars where there is no graph.

Operations differ by color and by line style.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrobnn.reporting.figures import COLORS, LINES, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_bars", "draw_cell"]

_FAINTEST = 0.02  # less probable operations are not drawn


def draw_cell(
    edges: Sequence[tuple[str, str]],
    operations: Sequence[str],
    table: Sequence[Sequence[float]],
    ax: Axes | None = None,
) -> Axes:
    """A cell as a graph: nodes on a line, an arc for each operation on each edge.

    Args:
        edges: Pairs of nodes.
        operations: Names of the operations; ``"zero"`` is not drawn.
        table: Probabilities ``[E, K]``, with which arcs grow wider and darker.
        ax: Axes to draw into; new ones if None.

    Returns:
        The axes.
    """
    from matplotlib.lines import Line2D

    ax = new_axes(ax)
    nodes = list(dict.fromkeys(node for edge in edges for node in edge))
    nodes.sort(key=lambda node: (not node.isdigit(), int(node) if node.isdigit() else 0))
    place = {node: float(index) for index, node in enumerate(nodes)}
    shown = [index for index, name in enumerate(operations) if name != "zero"]
    angle = np.linspace(0.0, np.pi, 50)
    for (source, target), probabilities in zip(edges, table, strict=True):
        start, end = place[source], place[target]
        for rank, index in enumerate(shown):
            p = probabilities[index]
            if p < _FAINTEST:
                continue
            height = 0.3 * (end - start) + 0.12 * rank
            x, y = (start + end) / 2 - (end - start) / 2 * np.cos(angle), height * np.sin(angle)
            style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}
            ax.plot(x, y, linewidth=0.5 + 3.5 * p, alpha=0.25 + 0.75 * p, zorder=1, **style)
    ax.scatter(list(place.values()), [0.0] * len(nodes), s=260, c="white", edgecolors="black", zorder=2)
    for node, x_position in place.items():
        ax.text(x_position, 0.0, node, ha="center", va="center", zorder=3)
    handles = [
        Line2D([], [], color=COLORS[i % len(COLORS)], linestyle=LINES[i % len(LINES)], label=operations[i])
        for i in shown
    ]
    ax.legend(handles=handles, loc="upper left", frameon=False)
    ax.set_axis_off()
    return ax


def draw_bars(
    names: Sequence[str], choices: Sequence[str], table: Sequence[Sequence[float]], ax: Axes | None = None
) -> Axes:
    """One stacked bar for each name, of the probabilities ``[E, K]`` of its choices.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    left = np.zeros(len(names))
    for index, choice in enumerate(choices):
        widths = np.array([row[index] for row in table])
        ax.barh(list(names), widths, left=left, color=COLORS[index % len(COLORS)], edgecolor="white", label=choice)
        left += widths
    ax.set_xlim(0.0, 1.0)
    ax.set_xlabel("posterior probability")
    ax.invert_yaxis()
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return ax
