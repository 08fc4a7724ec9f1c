"""Dirichlet distributions over the probabilities of three classes, on the triangle of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrobnn.core.arguments import check_int
from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float
from pyrobnn.reporting.figures import BLACK, VERMILLION, new_axes
from pyrobnn.reporting.plots.arrays import to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["simplex"]

_NATS = 6.0
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])


@explained
def simplex(
    concentrations: Tensor,
    *,
    names: Sequence[str] = ("1", "2", "3"),
    resolution: int = 120,
    ax: Axes | None = None,
) -> Axes:
    """The density of Dirichlet distributions over the probabilities of three classes.

    Corners are certainty of one class. Colors say how many nats the log density is below its largest value on the grid,
    from dark (none) to white (six or more), so that pictures compare by shape; the uniform density is evenly dark. A
    cross marks the mean probabilities, and a ring those of each draw where there are several.

    Args:
        concentrations: Those of one distribution ``[3]``, or of K draws ``[K, 3]``, whose mixture is drawn: of input i
            of a prediction, ``prediction.concentrations[:, i]``.
        names: Names of the classes.
        resolution: Grid points along a side.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        TypeError: If ``concentrations`` is no floating-point tensor.
        ValueError: If its shape is another, a value is not positive and finite, there are not three names, or
            ``resolution`` is no int of at least 10.
    """
    concentrations = check_float(concentrations, "concentrations", finite=True)
    if concentrations.ndim not in (1, 2) or concentrations.shape[-1] != 3 or not concentrations.numel():
        raise ValueError(f"concentrations: expected shape [3] or [K, 3], got {list(concentrations.shape)}.")
    if (smallest := concentrations.min()) <= 0:
        raise ValueError(f"concentrations: expected positive values, got {smallest.item():.4g}.")
    if isinstance(names, str) or len(names) != 3:
        raise ValueError(f"names: expected the names of three classes, got {names!r}.")
    check_int("resolution", resolution, 10)

    each = torch.distributions.Dirichlet(concentrations.detach().cpu().double().reshape(-1, 3))
    points = _grid(resolution)
    log_density = each.log_prob(torch.from_numpy(points).unsqueeze(1)).logsumexp(1) - math.log(each.batch_shape[0])
    below = to_numpy(log_density - log_density.max()).clip(-_NATS, 0.0)
    means = to_numpy(each.mean)

    ax = new_axes(ax)
    across, up = (points @ _CORNERS).T
    ax.tricontourf(across, up, below, levels=np.linspace(-_NATS, 1e-6, 25), cmap="Blues")
    ax.plot(*np.vstack([_CORNERS, _CORNERS[:1]]).T, color=BLACK, linewidth=1)
    if len(means) > 1:
        ax.plot(*(means @ _CORNERS).T, "o", color=VERMILLION, markerfacecolor="none", label="mean of a draw")
    ax.plot(*(means.mean(0, keepdims=True) @ _CORNERS).T, "x", color=VERMILLION, label="mean")
    for name, corner, offset in zip(names, _CORNERS, ((0, -6), (0, -6), (0, 6)), strict=True):
        where = "bottom" if offset[1] > 0 else "top"
        ax.annotate(str(name), corner, offset, textcoords="offset points", ha="center", va=where)
    alpha0 = float(concentrations.sum(-1).mean())
    ax.set(aspect="equal", title=rf"$\alpha_0$ = {alpha0:.4g}", xlim=(-0.08, 1.08), ylim=(-0.12, 0.98))
    ax.set(xlabel="probabilities of the classes", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def _grid(resolution: int) -> NDArray[np.float64]:
    """Points inside the triangle ``[P, 3]``: where a concentration is below 1 the density on its edge is infinite."""
    first, second = np.meshgrid(np.arange(resolution), np.arange(resolution), indexing="ij")
    inside = first + second < resolution
    whole = np.stack([first[inside], second[inside], resolution - 1 - first[inside] - second[inside]], -1)
    return (whole + 0.1) / (resolution - 1 + 0.3)
