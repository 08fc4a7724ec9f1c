"""Figures of images, and of what a network says about their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_labels
from pyrobnn.prediction import ClassPrediction, Prediction
from pyrobnn.reporting.pixels import pixels as pixels_of
from pyrobnn.reporting.plots.arrays import to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["image_grid", "uncertainty_maps"]

_VOID = "0.6"  # gray of pixels without a label


@explained
def image_grid(
    images: Tensor, titles: Sequence[str] | None = None, *, columns: int = 8, figure: Figure | None = None
) -> Figure:
    """Images in rows of `columns`, each under its title.

    ``uint8`` runs from 0 to 255 and floating point from 0 to 1. Images that leave [0, 1], such as
    standardized ones, are scaled with the minimum and maximum of the whole grid: brightness still compares.

    Args:
        images: ``[N, H, W]`` or ``[N, channels, H, W]`` with 1 (gray) or 3 (RGB) channels.
        titles: One per image.
        columns: Images per row.
        figure: Figure to draw into.

    Returns:
        The figure.

    Raises:
        ValueError: If the shape is another, a value is not finite, there are not N titles, or `columns` < 1.
        TypeError: If `images` is neither floating point nor ``uint8``.
    """
    import matplotlib.pyplot as plt

    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles: expected one for each of {len(images)} images, got {len(titles)}.")
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}.")
    pixels = pixels_of(images)

    columns = min(columns, len(pixels))
    rows = ceil(len(pixels) / columns)
    if figure is None:
        figure = plt.figure(figsize=(1.4 * columns, (1.7 if titles else 1.4) * rows), layout="constrained")
    for i, image in enumerate(pixels):
        ax = figure.add_subplot(rows, columns, i + 1)
        ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_axis_off()
        if titles is not None:
            ax.set_title(titles[i], fontsize="small")
    return figure


@explained
def uncertainty_maps(
    images: Tensor,
    truth: Tensor,
    prediction: Prediction,
    *,
    class_names: Sequence[str] | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Segmented images, one in each row: image, truth, prediction, total, aleatoric and epistemic uncertainty.

    Truth and prediction share their colors; pixels whose label the likelihood ignores are gray in the truth. Total and
    aleatoric entropies share a scale, the mutual information, which is smaller, has its own. Both are in nats.

    Args:
        images: Images ``[N, H, W]`` or ``[N, 1 or 3, H, W]``; values as for :func:`image_grid`.
        truth: Labels ``[N, H, W]``.
        prediction: The prediction for these images, with probabilities ``[N, H, W, C]``.
        class_names: Names of the C classes, for a legend of those that are seen.
        figure: Figure to draw into.

    Returns:
        The figure.

    Raises:
        TypeError: If the images or labels are of the wrong kind.
        ValueError: If shapes do not fit, a label is no class, or names are too many or too few.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    if not isinstance(prediction, ClassPrediction) or prediction.mean.ndim != 4:
        raise ValueError(
            f"prediction: expected class probabilities of pixels, [N, H, W, C], got a mean of shape "
            f"{list(prediction.mean.shape)}."
        )
    count, height, width, classes = prediction.mean.shape
    if len(images) != count or images.shape[-2:] != (height, width):
        raise ValueError(f"images: expected {count} of {height} by {width} pixels, got {list(images.shape)}.")
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"class_names: expected one for each of {classes} classes, got {len(class_names)}.")
    pixels = pixels_of(images)
    observed = prediction.likelihood.observed_mask(truth)
    void = torch.zeros_like(truth, dtype=torch.bool) if observed is None else ~observed
    labels = check_labels(truth.masked_fill(void, 0), prediction.mean.shape[:-1], classes, name="truth")
    known = np.ma.masked_array(labels.cpu().numpy(), void.cpu().numpy())
    predicted = prediction.predicted.cpu().numpy()
    maps = {name: to_numpy(getattr(prediction, name)) for name in ("total", "aleatoric", "epistemic")}
    highest = {"total": maps["total"].max(), "aleatoric": maps["total"].max(), "epistemic": maps["epistemic"].max()}

    if figure is None:
        size = (11.0, count * 11.0 / 6 * height / width + 1.0)
        figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(count + 1, 6, height_ratios=[1.0] * count + [0.06])
    axes = np.array([[figure.add_subplot(grid[row, column]) for column in range(6)] for row in range(count)])
    colors = ListedColormap(_class_colors(classes)).with_extremes(bad=_VOID)
    for row in range(count):
        axes[row, 0].imshow(pixels[row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for column, found in ((1, known[row]), (2, predicted[row])):
            axes[row, column].imshow(found, cmap=colors, vmin=-0.5, vmax=classes - 0.5, interpolation="nearest")
        for column, (name, values) in enumerate(maps.items(), 3):
            limits: dict[str, Any] = {"vmin": 0, "vmax": max(highest[name], 1e-12)}
            axes[row, column].imshow(values[row], cmap="magma", interpolation="nearest", **limits)
    for column, name in enumerate(("image", "truth", "prediction", *maps)):
        axes[0, column].set_title(name, fontsize="medium")
    for ax in axes.flat:
        ax.set_axis_off()
    for columns, label in ((slice(3, 5), "entropy [nats]"), (slice(5, 6), "mutual information [nats]")):
        cax = figure.add_subplot(grid[-1, columns])
        figure.colorbar(axes[0, columns.start].images[0], cax=cax, orientation="horizontal")
        cax.set_xlabel(label, fontsize="small")
        cax.tick_params(labelsize="small")
    if class_names is not None:
        seen = sorted({*np.unique(known.compressed()).tolist(), *np.unique(predicted).tolist()})
        patches = [Patch(color=colors(int(label)), label=class_names[label]) for label in seen]
        patches += [Patch(color=_VOID, label="void")] if bool(void.any()) else []
        style: dict[str, Any] = {"fontsize": "small", "frameon": False, "handlelength": 1.2, "columnspacing": 1.2}
        below = figure.add_subplot(grid[-1, :3])
        below.legend(handles=patches, loc="upper left", ncols=6, borderaxespad=0, **style)
        below.set_axis_off()
    return figure


def _class_colors(classes: int) -> list[Any]:
    """Different colors, none of them gray: those of matplotlib's "tab20", the stronger ones first."""
    import matplotlib.pyplot as plt

    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    chosen = [color for i, color in enumerate((*colors[::2], *colors[1::2])) if i % 10 != 7]
    return chosen[:classes] if classes <= len(chosen) else list(plt.get_cmap("turbo")(np.linspace(0, 1, classes)))
