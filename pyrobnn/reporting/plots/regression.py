"""Figures of regression: the predictive mean in its bands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.reporting.figures import BLACK, BLUE, SKY, VERMILLION, new_axes
from pyrobnn.reporting.plots.arrays import require_same_length, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["regression_band"]


@explained
def regression_band(
    x: Tensor,
    mean: Tensor,
    aleatoric: Tensor,
    epistemic: Tensor,
    *,
    num_std: float = 2,
    train: tuple[Tensor, Tensor] | None = None,
    xlabel: str = "x",
    ylabel: str = "y",
    ax: Axes | None = None,
) -> Axes:
    """Predictive mean within two nested bands: epistemic, then total uncertainty.

    The bands are mean ± k √epistemic and mean ± k √(aleatoric + epistemic). Variances add and standard
    deviations do not, so the visible margin between the bands is narrower than k √aleatoric.

    Args:
        x: Inputs, ``[N]`` or ``[N, 1]``, in any order.
        mean: Predictive mean, same shapes, in units of the target.
        aleatoric: Variance of the observation noise, same shapes, in units of the target squared.
        epistemic: Variance of the mean under the posterior, same shapes, in units of the target squared.
        num_std: Half-width k of both bands in standard deviations.
        train: Training data ``(x, y)`` to show as crosses.
        xlabel: Name and unit of the input.
        ylabel: Name and unit of the target.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: If lengths differ, a value is not finite, or a variance or `num_std` is negative.
    """
    named = {"x": x, "mean": mean, "aleatoric": aleatoric, "epistemic": epistemic}
    columns = {name: vector(values, name) for name, values in named.items()}
    require_same_length(columns)
    for name in ("aleatoric", "epistemic"):
        if columns[name].min() < 0:
            raise ValueError(f"{name}: expected variances, got the negative value {columns[name].min():.4g}.")
    if num_std < 0:
        raise ValueError(f"num_std: expected at least 0, got {num_std}.")
    order = np.argsort(columns["x"], kind="stable")
    inputs, center, noise, spread = (column[order] for column in columns.values())

    ax = new_axes(ax)
    bands = (("aleatoric + epistemic", noise + spread, SKY), ("epistemic", spread, BLUE))
    for part, variance, color in bands:
        half = num_std * np.sqrt(variance)
        style: dict[str, Any] = {"facecolor": (color, 0.35), "edgecolor": color}
        ax.fill_between(inputs, center - half, center + half, **style, label=f"{part}, ±{num_std:g} std")
    ax.plot(inputs, center, color=BLACK, label="mean")
    if train is not None:
        points = {f"train[{i}]": vector(values, f"train[{i}]") for i, values in enumerate(train)}
        require_same_length(points)
        ax.plot(*points.values(), "x", color=VERMILLION, markersize=5, label="training data")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return ax
