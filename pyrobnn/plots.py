"""Figures of predictions, uncertainty and training.

Every function that draws one panel takes ``ax`` (``None``: a new figure), draws into it and returns it. None
calls ``plt.show()``, so they work in a notebook, in a script and under the Agg backend alike. Colours are
those of Okabe and Ito (2008), made for colour-blind readers; hatching and line style say it again.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from pyrobnn.calibration import reliability_curve
from pyrobnn.prediction import ClassPrediction, Prediction
from pyrobnn.uncertainty._checks import check_float, check_labels

BLACK, BLUE, SKY, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
VERMILLION, ORANGE, PURPLE = "#D55E00", "#E69F00", "#CC79A7"
_GROUPS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_LINES = ("-", "--", "-.", ":")
_VOID = "0.6"


def reliability(probs: Tensor, y: Tensor, *, num_bins: int = 10, ax: Axes | None = None) -> Axes:
    """Reliability diagram: the accuracy within each bin of confidence.

    The hatched part of a bar spans the gap between the accuracy of the bin and its mean confidence. The gaps,
    averaged over examples, are the expected calibration error (ECE) in the title. Empty bins stay blank.

    Args:
        probs: Predicted probabilities, ``[N, C]``.
        y: Class labels, ``[N]``.
        num_bins: Number of bins.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: As :func:`pyrobnn.calibration.reliability_curve`.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", ICML.
    """
    curve = reliability_curve(probs, y, num_bins=num_bins)
    edges, accuracy, confidence = map(_numpy, (curve.bin_edges, curve.accuracy, curve.confidence))
    gap, lower = np.abs(confidence - accuracy), np.minimum(confidence, accuracy)  # NaN where empty: no bar
    place: dict[str, Any] = {"x": edges[:-1], "width": np.diff(edges), "align": "edge"}
    hatched: dict[str, Any] = {"facecolor": (VERMILLION, 0.25), "edgecolor": VERMILLION, "hatch": "//"}

    ax = _axes(ax)
    ax.bar(**place, height=accuracy, color=BLUE, edgecolor="white", label="accuracy")
    ax.bar(**place, height=gap, bottom=lower, **hatched, label="gap to confidence")
    ax.plot([0, 1], [0, 1], color=BLACK, linestyle="--", linewidth=1, label="perfect calibration")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=f"ECE = {float(curve.ece):.3f}")
    ax.set(xlabel="confidence (largest probability)", ylabel="accuracy")
    ax.legend(loc="upper left")
    return ax


def confidence_histogram(probs: Tensor, y: Tensor, *, num_bins: int = 20, ax: Axes | None = None) -> Axes:
    """How confident the wrong and the correct predictions are: stacked bars, the wrong ones at the bottom.

    Two vertical lines mark accuracy and mean confidence; accuracy left of confidence means overconfidence.

    Args:
        probs: Predicted probabilities, ``[N, C]``.
        y: Class labels, ``[N]``.
        num_bins: Number of bins.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: As :func:`pyrobnn.calibration.reliability_curve`.
    """
    curve = reliability_curve(probs, y, num_bins=num_bins)
    edges, count = _numpy(curve.bin_edges), _numpy(curve.count)
    correct = np.rint(np.nan_to_num(count * _numpy(curve.accuracy)))
    wrong = count - correct
    mean_accuracy = correct.sum() / count.sum()
    mean_confidence = np.nansum(count * _numpy(curve.confidence)) / count.sum()
    place: dict[str, Any] = {"x": edges[:-1], "width": np.diff(edges), "align": "edge", "edgecolor": "white"}

    ax = _axes(ax)
    ax.bar(**place, height=wrong, color=VERMILLION, hatch="//", label=f"wrong ({wrong.sum():.0f})")
    ax.bar(**place, height=correct, bottom=wrong, color=SKY, label=f"correct ({correct.sum():.0f})")
    ax.axvline(mean_accuracy, color=BLACK, linestyle="-", label=f"accuracy {mean_accuracy:.3f}")
    ax.axvline(mean_confidence, color=BLACK, linestyle=":", label=f"mean confidence {mean_confidence:.3f}")
    ax.set(xlim=(0, 1), xlabel="confidence (largest probability)", ylabel="number of examples")
    ax.legend(loc="upper left")
    return ax


def uncertainty_histogram(
    scores: Mapping[str, Tensor],
    *,
    xlabel: str = "uncertainty score",
    bins: int | Sequence[float] = 40,
    ax: Axes | None = None,
) -> Axes:
    """Histograms of one score over several groups, such as known and unknown data.

    The groups share their bins, and each is divided by its own size, so groups of different size compare.

    Args:
        scores: Group name to scores, each ``[N_group]``.
        xlabel: Name and unit of the score, such as ``"mutual information [nats]"``.
        bins: Number of equally wide bins over all groups together, or the bin edges.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no group or more than seven, if one is empty or not finite, or if scores lie
            outside the given edges.
    """
    if not 1 <= len(scores) <= len(_GROUPS):
        raise ValueError(f"scores: expected 1 to {len(_GROUPS)} groups, got {len(scores)}.")
    groups = {name: _vector(values, f"scores[{name!r}]") for name, values in scores.items()}
    pooled = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(pooled, bins)
    if pooled.min() < edges[0] or pooled.max() > edges[-1]:
        span = f"{pooled.min():.4g} to {pooled.max():.4g}"
        raise ValueError(f"bins: expected edges that cover {span}, got {edges[0]:.4g} to {edges[-1]:.4g}.")

    ax = _axes(ax)
    for i, (name, values) in enumerate(groups.items()):
        fraction = np.histogram(values, edges)[0] / len(values)
        style: dict[str, Any] = {"facecolor": (_GROUPS[i], 0.25), "edgecolor": _GROUPS[i], "linewidth": 1.5}
        style["linestyle"] = _LINES[i % len(_LINES)]
        ax.stairs(fraction, edges, fill=True, **style, label=f"{name} ({len(values)})")
    ax.set(xlabel=xlabel, ylabel="fraction of the group")
    ax.legend()
    return ax


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
    columns = {name: _vector(values, name) for name, values in named.items()}
    _require_same_length(columns)
    for name in ("aleatoric", "epistemic"):
        if columns[name].min() < 0:
            raise ValueError(f"{name}: expected variances, got the negative value {columns[name].min():.4g}.")
    if num_std < 0:
        raise ValueError(f"num_std: expected at least 0, got {num_std}.")
    order = np.argsort(columns["x"], kind="stable")
    inputs, centre, noise, spread = (column[order] for column in columns.values())

    ax = _axes(ax)
    bands = (("aleatoric + epistemic", noise + spread, SKY), ("epistemic", spread, BLUE))
    for part, variance, color in bands:
        half = num_std * np.sqrt(variance)
        style: dict[str, Any] = {"facecolor": (color, 0.35), "edgecolor": color}
        ax.fill_between(inputs, centre - half, centre + half, **style, label=f"{part}, ±{num_std:g} std")
    ax.plot(inputs, centre, color=BLACK, label="mean")
    if train is not None:
        points = {f"train[{i}]": _vector(values, f"train[{i}]") for i, values in enumerate(train)}
        _require_same_length(points)
        ax.plot(*points.values(), "x", color=VERMILLION, markersize=5, label="training data")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return ax


class ElboHistory(Protocol):
    """What :func:`elbo` reads: one number per epoch in each list, in nats per datum."""

    elbo: list[float]
    log_likelihood: list[float]
    kl: list[float]


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
    parts = {"elbo": history.elbo, "log_likelihood": history.log_likelihood, "kl": history.kl}
    # Values that are not finite become gaps: the run that blew up is the one to look at.
    series = {f"history.{name}": np.asarray(values, dtype=float) for name, values in parts.items()}
    _require_same_length(series)
    epochs = np.arange(1, len(history.elbo) + 1)
    labels = ("ELBO", "expected log likelihood", "divergence from the prior")
    colors = (BLACK, BLUE, VERMILLION)
    marker = "o" if len(epochs) == 1 else None  # one point makes no line

    ax = _axes(ax)
    for values, label, color, line in zip(series.values(), labels, colors, ("-", "--", ":"), strict=True):
        ax.plot(epochs, values, color=color, linestyle=line, marker=marker, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel="nats per datum")
    ax.legend()
    return ax


def rank_histogram(ranks: Tensor, num_draws: int, *, num_bins: int = 10, ax: Axes | None = None) -> Axes:
    """Ranks of true values among posterior draws by bin; flat where an inference is calibrated.

    The band holds 99 % of the counts of a single bin of uniform ranks.

    Args:
        ranks: Ranks from 0 to `num_draws`, ``[n]``.
        num_draws: Posterior draws L of each simulation.
        num_bins: Number of bins.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: If a rank is out of range, or `num_bins` does not divide L + 1.

    Source: Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based calibration".
    """
    values = _ranks(ranks, num_draws)
    if num_bins < 1 or (num_draws + 1) % num_bins:
        raise ValueError(f"num_bins: expected a divisor of num_draws + 1 = {num_draws + 1}, got {num_bins}.")
    counts = np.bincount(values * num_bins // (num_draws + 1), minlength=num_bins)
    edges = np.linspace(0, num_draws + 1, num_bins + 1) - 0.5
    low, high = stats.binom.ppf([0.005, 0.995], len(values), 1.0 / num_bins)

    ax = _axes(ax)
    ax.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white", label="ranks")
    ax.axhspan(low, high, facecolor=(BLACK, 0.15), edgecolor=BLACK, label="99 % of a uniform bin")
    ax.axhline(len(values) / num_bins, color=BLACK, linestyle="--", linewidth=1)
    ax.set(xlim=(edges[0], edges[-1]), xlabel=f"rank among {num_draws} draws", ylabel="number of simulations")
    ax.legend()
    return ax


def rank_ecdf(ranks: Tensor, num_draws: int, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """Empirical distribution of ranks less that of uniform ones, in its simultaneous band.

    A calibrated inference stays within the band altogether with probability `level`. Above zero throughout: the
    posteriors lie too high, below: too low; above on the left and below on the right: too narrow, the reverse: too
    wide.

    Args:
        ranks: Ranks from 0 to `num_draws`, ``[n]``.
        num_draws: Posterior draws L of each simulation.
        level: Probability of the band.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: If a rank or `level` is out of range.

    Source: Säilynoja, Bürkner & Vehtari (2022), "Graphical test for discrete uniformity"; the band is one of equal
    standard errors, found by 1000 simulations.
    """
    values = _ranks(ranks, num_draws)
    if not 0 < level < 1:
        raise ValueError(f"level: expected a probability above 0 and below 1, got {level}.")
    uniform = np.arange(1, num_draws + 1) / (num_draws + 1)  # P(rank < k) for k = 1, ..., L
    error = np.sqrt(uniform * (1.0 - uniform) / len(values))
    simulated = np.random.default_rng(0).integers(0, num_draws + 1, (1000, len(values)))
    farthest = [np.abs((_ecdf(row, num_draws) - uniform) / error).max() for row in simulated]
    half = np.quantile(farthest, level) * error

    ax = _axes(ax)
    band: dict[str, Any] = {"facecolor": (BLACK, 0.15), "edgecolor": BLACK}
    ax.fill_between(uniform, -half, half, **band, label=f"{level:.0%} of calibrated inferences")
    ax.plot(uniform, _ecdf(values, num_draws) - uniform, color=BLUE, drawstyle="steps-mid", label="ranks")
    ax.axhline(0.0, color=BLACK, linestyle="--", linewidth=1)
    ax.set(xlim=(0, 1), xlabel="fractional rank", ylabel="ECDF difference")
    ax.legend()
    return ax


def image_grid(
    images: Tensor, titles: Sequence[str] | None = None, *, columns: int = 8, figure: Figure | None = None
) -> Figure:
    """Images in rows of `columns`, each under its title.

    ``uint8`` runs from 0 to 255 and floating point from 0 to 1. Images that leave [0, 1], such as
    standardised ones, are scaled with the minimum and maximum of the whole grid: brightness still compares.

    Args:
        images: ``[N, H, W]`` or ``[N, channels, H, W]`` with 1 (grey) or 3 (RGB) channels.
        titles: One per image.
        columns: Images per row.
        figure: Figure to draw into.

    Returns:
        The figure.

    Raises:
        ValueError: If the shape is another, a value is not finite, there are not N titles, or `columns` < 1.
        TypeError: If `images` is neither floating point nor ``uint8``.
    """
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles: expected one for each of {len(images)} images, got {len(titles)}.")
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}.")
    pixels = _pixels(images)

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


def uncertainty_maps(
    images: Tensor,
    truth: Tensor,
    prediction: Prediction,
    *,
    class_names: Sequence[str] | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Segmented images, one in each row: image, truth, prediction, total, aleatoric and epistemic uncertainty.

    Truth and prediction share their colours; pixels whose label the likelihood ignores are grey in the truth. Total and
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
    pixels = _pixels(images)
    observed = prediction.likelihood.observed(truth)
    void = torch.zeros_like(truth, dtype=torch.bool) if observed is None else ~observed
    labels = check_labels(truth.masked_fill(void, 0), prediction.mean.shape[:-1], classes, name="truth")
    known = np.ma.masked_array(labels.cpu().numpy(), void.cpu().numpy())
    predicted = prediction.predicted.cpu().numpy()
    maps = {name: _numpy(getattr(prediction, name)) for name in ("total", "aleatoric", "epistemic")}
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
    """Different colours, none of them grey: those of matplotlib's "tab20", the stronger ones first."""
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    chosen = [color for i, color in enumerate((*colors[::2], *colors[1::2])) if i % 10 != 7]
    return chosen[:classes] if classes <= len(chosen) else list(plt.get_cmap("turbo")(np.linspace(0, 1, classes)))


def _pixels(images: Tensor) -> NDArray[np.float64]:
    """Images from 0 to 1, channels last; those that leave the range are scaled together."""
    channels = images.shape[1] if images.ndim == 4 else 1
    if images.ndim not in (3, 4) or channels not in (1, 3):
        raise ValueError(f"images: expected [N, H, W] or [N, 1 or 3, H, W], got {list(images.shape)}.")
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    pixels = _numpy(check_float(scaled, "images", finite=True))
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 1:
        pixels = (pixels - low) / (high - low if high > low else 1)
    return pixels.transpose(0, 2, 3, 1) if pixels.ndim == 4 else pixels


def _ranks(ranks: Tensor, num_draws: int) -> NDArray[np.int64]:
    values = ranks.detach().cpu().numpy()
    if values.ndim != 1 or not len(values) or values.min() < 0 or values.max() > num_draws:
        raise ValueError(f"ranks: expected numbers from 0 to {num_draws}, of shape [n], got shape {list(ranks.shape)}.")
    return values.astype(np.int64)


def _ecdf(ranks: NDArray[np.int64], num_draws: int) -> NDArray[np.float64]:
    """Share of ranks below k for k = 1, ..., L."""
    return np.cumsum(np.bincount(ranks, minlength=num_draws + 1))[:-1] / len(ranks)


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _vector(values: Tensor, name: str) -> NDArray[np.float64]:
    values = check_float(values, name, finite=True)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"{name}: expected shape [N] or [N, 1], got {list(values.shape)}.")
    return _numpy(values)


def _require_same_length(columns: Mapping[str, NDArray[np.float64]]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"expected equal lengths of at least 1, got {lengths}.")
