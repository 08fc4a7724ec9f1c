"""Known answers for what is drawn: heights, limits, lines and labels of the artists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrobnn import metrics, plots
from pyrobnn.model.likelihoods import Categorical
from pyrobnn.prediction import ClassPrediction, Prediction

X = torch.tensor([2.0, 0.0, 1.0])
MEAN = torch.tensor([20.0, 0.0, 10.0])
ALEATORIC = torch.tensor([9.0, 9.0, 0.0])
EPISTEMIC = torch.tensor([16.0, 0.0, 4.0])

# Confidence 0.95 three times (two correct) and 0.65 once (wrong).
PROBS = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.05, 0.95], [0.65, 0.35]])
LABELS = torch.tensor([0, 0, 0, 1])

# Ranks among four draws, of twelve simulations: the bins hold 4, 1, 2, 1 and 4.
RANKS = torch.tensor([0] * 4 + [1] + [2] * 2 + [3] + [4] * 4)

RISK = metrics.risk_coverage(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0, 1, 0, 1]))

HISTORY = SimpleNamespace(elbo=[-3.0, -2.0], log_likelihood=[-2.5, -1.0], kl=[0.5, 1.0])

PANELS: dict[str, Callable[..., Axes]] = {
    "reliability": lambda ax=None: plots.reliability(PROBS, LABELS, ax=ax),
    "confidence_histogram": lambda ax=None: plots.confidence_histogram(PROBS, LABELS, ax=ax),
    "uncertainty_histogram": lambda ax=None: plots.uncertainty_histogram({"known": X}, ax=ax),
    "risk_coverage": lambda ax=None: plots.risk_coverage({"entropy": RISK}, ax=ax),
    "regression_band": lambda ax=None: plots.regression_band(X, MEAN, ALEATORIC, EPISTEMIC, ax=ax),
    "simplex": lambda ax=None: plots.simplex(torch.tensor([[2.0, 3.0, 4.0], [1.0, 1.0, 8.0]]), ax=ax),
    "elbo": lambda ax=None: plots.elbo(HISTORY, ax=ax),
    "rank_histogram": lambda ax=None: plots.rank_histogram(RANKS, 4, num_bins=5, ax=ax),
    "rank_ecdf": lambda ax=None: plots.rank_ecdf(RANKS, 4, ax=ax),
}


@pytest.fixture(autouse=True)
def _agg_without_show(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("plt.show() was called")

    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", refuse)
    yield
    plt.close("all")


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def bars(ax: Axes, label: str) -> list[tuple[float, float, float]]:
    """(left, bottom, height) of every bar that is drawn."""
    (container,) = [c for c in ax.containers if c.get_label().startswith(label)]
    corners = [(bar.get_x(), bar.get_y(), bar.get_height()) for bar in container]
    return [corner for corner in corners if np.isfinite(corner[2]) and corner[2] > 0]


def line(ax: Axes, label: str) -> tuple[list[float], list[float]]:
    (artist,) = [artist for artist in ax.lines if artist.get_label().startswith(label)]
    return list(artist.get_xdata()), list(artist.get_ydata())


def band(ax: Axes, label: str) -> dict[float, tuple[float, float]]:
    """Lower and upper limit at every x."""
    (artist,) = [artist for artist in ax.collections if artist.get_label().startswith(label)]
    x, y = artist.get_paths()[0].vertices.T
    return {at: (y[x == at].min(), y[x == at].max()) for at in np.unique(x).tolist()}


@pytest.mark.parametrize("name", PANELS)
def test_panel_draws_into_the_given_axes_and_only_there(name: str, ax: Axes) -> None:
    assert PANELS[name](ax=ax) is ax
    assert ax.has_data()
    assert plt.get_fignums() == []
    assert ax.get_xlabel()
    assert ax.get_ylabel() or name == "simplex"  # a triangle has one label


@pytest.mark.parametrize("name", PANELS)
def test_panel_makes_a_figure_of_its_own_that_renders(name: str) -> None:
    first, second = PANELS[name](), PANELS[name]()
    assert first.figure is not second.figure
    first.figure.canvas.draw()  # warnings are errors, so this also finds layout and glyph trouble


def test_reliability_known_bars(ax: Axes) -> None:
    plots.reliability(PROBS, LABELS, num_bins=10, ax=ax)
    assert np.allclose(bars(ax, "accuracy"), [(0.9, 0, 2 / 3)])  # the other filled bin has accuracy 0
    assert np.allclose(bars(ax, "gap"), [(0.6, 0, 0.65), (0.9, 2 / 3, 0.95 - 2 / 3)])
    assert line(ax, "perfect") == ([0, 1], [0, 1])
    # 1/4 · 0.65 + 3/4 · (0.95 - 2/3)
    assert ax.get_title() == "ECE = 0.375"


def test_reliability_gap_of_an_underconfident_bin_hangs_from_the_accuracy(ax: Axes) -> None:
    plots.reliability(torch.tensor([[0.75, 0.25]]), torch.tensor([0]), num_bins=2, ax=ax)
    assert bars(ax, "accuracy") == [(0.5, 0, 1)]
    assert bars(ax, "gap") == [(0.5, 0.75, 0.25)]


def test_confidence_histogram_known_bars_and_means(ax: Axes) -> None:
    plots.confidence_histogram(PROBS, LABELS, num_bins=10, ax=ax)
    # Bins of width 0.04 from 0.6 on, which is the last tenth below the smallest confidence.
    assert np.allclose(bars(ax, "wrong (2)"), [(0.64, 0, 1), (0.92, 0, 1)])
    assert np.allclose(bars(ax, "correct (2)"), [(0.92, 0, 2)])
    assert ax.get_xlim() == (0.6, 1.0)
    assert ax.get_yscale() == "log"  # one bin holds most examples of a good classifier, and others would not be seen
    assert ax.get_ylim()[0] == 0.5
    assert np.allclose(line(ax, "accuracy 0.500")[0], 0.5)
    assert np.allclose(line(ax, "mean confidence 0.875")[0], 0.875)


def test_confidence_histogram_of_a_sure_network_has_more_than_one_bar(ax: Axes) -> None:
    confidence = torch.linspace(0.9992, 0.99999, 20, dtype=torch.float64)
    plots.confidence_histogram(torch.stack([confidence, 1 - confidence], -1), torch.zeros(20).long(), ax=ax)
    assert ax.get_xlim()[0] == 0.999
    assert len(bars(ax, "correct (20)")) > 10


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 60),
    classes=st.integers(2, 5),
    num_bins=st.integers(1, 30),
)
def test_confidence_histogram_counts_every_example(seed: int, size: int, classes: int, num_bins: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = (5 * torch.randn(size, classes, generator=generator)).softmax(-1)
    y = torch.randint(classes, (size,), generator=generator)
    ax = plots.confidence_histogram(probs, y, num_bins=num_bins, ax=Figure().subplots())
    correct = int((probs.argmax(-1) == y).sum())
    assert sum(height for _, _, height in bars(ax, "correct")) == correct
    assert sum(height for _, _, height in bars(ax, "wrong")) == size - correct


def test_risk_coverage_shows_the_curves_and_the_best_order(ax: Axes) -> None:
    plots.risk_coverage({"entropy": RISK}, ax=ax)
    x, y = line(ax, f"entropy (area {float(RISK.aurc):.3g})")
    np.testing.assert_allclose(x, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(y, [0.0, 0.5, 1 / 3, 0.5])  # errors 0, 1, 0, 1 in the order of the uncertainty
    np.testing.assert_allclose(line(ax, "best order")[1], [0.0, 0.0, 1 / 3, 0.5])


def test_risk_coverage_refuses() -> None:
    with pytest.raises(ValueError, match="curves: expected 1 to 7, got 0"):
        plots.risk_coverage({})
    with pytest.raises(TypeError, match=r"curves of 'a': expected what metrics\.risk_coverage"):
        plots.risk_coverage({"a": X})  # type: ignore[dict-item]


@pytest.mark.parametrize("plot", [plots.reliability, plots.confidence_histogram])
def test_logits_in_place_of_probabilities_are_refused(plot: Callable[..., Axes]) -> None:
    with pytest.raises(ValueError, match="probs"):
        plot(torch.tensor([[3.0, -1.0]]), torch.tensor([0]))


def test_uncertainty_histogram_shares_bins_and_divides_by_group_size(ax: Axes) -> None:
    scores = {"known": torch.tensor([0.0, 0.1, 0.2, 0.6]), "unknown": torch.tensor([0.9, 1.0])}
    plots.uncertainty_histogram(scores, xlabel="mutual information [nats]", bins=2, ax=ax)
    known, unknown = (patch.get_data() for patch in ax.patches)
    assert np.allclose(known.edges, [0, 0.5, 1])
    assert np.allclose(unknown.edges, [0, 0.5, 1])
    assert known.values.tolist() == [0.75, 0.25]
    assert unknown.values.tolist() == [0, 1]
    assert ax.get_legend_handles_labels()[1] == ["known (4)", "unknown (2)"]
    assert ax.get_xlabel() == "mutual information [nats]"


def test_uncertainty_histogram_of_a_constant_score(ax: Axes) -> None:
    plots.uncertainty_histogram({"known": torch.zeros(3)}, bins=3, ax=ax)
    assert ax.patches[0].get_data().values.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("scores", "bins", "message"),
    [
        ({}, 4, "scores: expected 1 to 7 groups, got 0"),
        ({str(i): torch.ones(2) for i in range(8)}, 4, "got 8"),
        ({"known": torch.ones(2), "odd": torch.tensor([1.0, torch.nan])}, 4, "odd.*finite"),
        ({"known": torch.ones(0)}, 4, "known.*at least one element"),
        ({"known": torch.ones(2, 3)}, 4, r"known.*\[N\] or \[N, 1\], got \[2, 3\]"),
        (
            {"known": torch.tensor([0.0, 2.0])},
            [0.0, 0.5, 1.0],
            "bins: expected edges that cover 0 to 2, got 0 to 1",
        ),
    ],
)
def test_uncertainty_histogram_refuses(scores: dict[str, Tensor], bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.uncertainty_histogram(scores, bins=bins)
    assert plt.get_fignums() == []  # and leaves no empty figure behind


def test_regression_band_known_limits_in_order_of_x(ax: Axes) -> None:
    plots.regression_band(X, MEAN, ALEATORIC, EPISTEMIC, num_std=3, ax=ax)
    assert band(ax, "epistemic, ±3 std") == {0: (0, 0), 1: (4, 16), 2: (8, 32)}
    # √(9 + 16) = 5, not 3 + 4: variances add.
    assert band(ax, "aleatoric + epistemic, ±3 std") == {0: (-9, 9), 1: (4, 16), 2: (5, 35)}
    assert line(ax, "mean") == ([0, 1, 2], [0, 10, 20])


def test_regression_band_takes_columns_gradients_and_half_precision(ax: Axes) -> None:
    columns = [column[:, None].bfloat16().requires_grad_() for column in (X, MEAN, ALEATORIC, EPISTEMIC)]
    train = (torch.tensor([[5.0], [6.0]]), torch.tensor([7.0, 8.0]))
    plots.regression_band(*columns, train=train, xlabel="time [s]", ylabel="height [m]", ax=ax)
    assert band(ax, "epistemic, ±2 std") == {0: (0, 0), 1: (6, 14), 2: (12, 28)}
    assert line(ax, "training data") == ([5, 6], [7, 8])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time [s]", "height [m]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epistemic": -EPISTEMIC}, "epistemic: expected variances, got the negative value -16"),
        ({"aleatoric": ALEATORIC[:2]}, "equal lengths.*'aleatoric': 2"),
        ({"mean": torch.full((3,), torch.inf)}, "mean: expected finite"),
        ({"x": torch.zeros(3, 2)}, r"x: expected shape \[N\]"),
        ({"num_std": -1.0}, "num_std"),
        ({"train": (X, X[:1])}, r"equal lengths.*'train\[1\]': 1"),
    ],
)
def test_regression_band_refuses(change: dict[str, object], message: str) -> None:
    arguments = {"x": X, "mean": MEAN, "aleatoric": ALEATORIC, "epistemic": EPISTEMIC} | change
    with pytest.raises(ValueError, match=message):
        plots.regression_band(**arguments)


def test_rank_histogram_known_bars(ax: Axes) -> None:
    plots.rank_histogram(RANKS, 4, num_bins=5, ax=ax)
    assert bars(ax, "ranks") == [(-0.5, 0.0, 4.0), (0.5, 0.0, 1.0), (1.5, 0.0, 2.0), (2.5, 0.0, 1.0), (3.5, 0.0, 4.0)]
    assert ax.lines[-1].get_ydata()[0] == 12 / 5


def test_rank_ecdf_known_steps(ax: Axes) -> None:
    plots.rank_ecdf(RANKS, 4, ax=ax)
    steps = next(line for line in ax.lines if line.get_label() == "ranks")
    np.testing.assert_allclose(steps.get_xdata(), [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(steps.get_ydata(), np.array([4, 5, 7, 8]) / 12 - [0.2, 0.4, 0.6, 0.8])


def test_rank_ecdf_band_holds_as_many_as_it_says() -> None:
    """Of 400 sets of 60 uniform ranks 80 % stay within the band altogether; sd 2 %, z below 5."""
    ax = plots.rank_ecdf(torch.zeros(60), 9, level=0.8)
    band = ax.collections[0].get_paths()[0].vertices
    inner = np.arange(1, 10) / 10
    half = np.array([band[np.isclose(band[:, 0], x), 1].max() for x in inner])
    ranks = np.random.default_rng(1).integers(0, 10, (400, 60))
    ecdf = (ranks[:, :, None] < np.arange(1, 10)).mean(1)
    inside = (np.abs(ecdf - inner) <= half + 1e-9).all(1).mean()
    assert abs(inside - 0.8) < 5 * 0.02 + 0.02  # the band comes from 1000 simulations and discrete counts


def test_rank_plots_refuse() -> None:
    for ranks in (torch.tensor([5]), torch.tensor([-1]), torch.zeros(2, 2), torch.zeros(0)):
        for plot in (plots.rank_ecdf, plots.rank_histogram):
            with pytest.raises(ValueError, match="ranks: expected numbers from 0 to 4"):
                plot(ranks, 4)
    with pytest.raises(ValueError, match="num_bins: expected a divisor of num_samples \\+ 1 = 5, got 2"):
        plots.rank_histogram(RANKS, 4, num_bins=2)
    with pytest.raises(ValueError, match="level: expected a probability"):
        plots.rank_ecdf(RANKS, 4, level=1.0)


def test_elbo_known_lines(ax: Axes) -> None:
    plots.elbo(HISTORY, ax=ax)
    assert line(ax, "ELBO") == ([1, 2], [-3, -2])
    assert line(ax, "expected log likelihood") == ([1, 2], [-2.5, -1])
    assert line(ax, "divergence") == ([1, 2], [0.5, 1])
    assert ax.get_ylabel() == "nats per datum"


def test_elbo_shows_a_single_epoch_as_points(ax: Axes) -> None:
    plots.elbo(SimpleNamespace(elbo=[-1.0], log_likelihood=[-0.5], kl=[0.5]), ax=ax)
    assert {artist.get_marker() for artist in ax.lines} == {"o"}


def test_elbo_of_a_run_that_blew_up_still_draws() -> None:
    ax = plots.elbo(SimpleNamespace(elbo=[-1.0, torch.nan], log_likelihood=[-0.5, -torch.inf], kl=[0.5, 0.5]))
    ax.figure.canvas.draw()
    assert np.isnan(line(ax, "ELBO")[1][1])


@pytest.mark.parametrize("kl", [[], [0.5], [0.5, 1.0, 1.5]])
def test_elbo_refuses_lists_of_different_length(kl: list[float]) -> None:
    with pytest.raises(ValueError, match=rf"'history.kl': {len(kl)}"):
        plots.elbo(SimpleNamespace(elbo=[-3.0, -2.0], log_likelihood=[-2.5, -1.0], kl=kl))


def test_elbo_refuses_an_empty_history() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        plots.elbo(SimpleNamespace(elbo=[], log_likelihood=[], kl=[]))


def shown(figure: Figure) -> list[np.ndarray]:
    figure.canvas.draw()
    return [np.asarray(panel.images[0].get_array()) for panel in figure.axes]


@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 1, 2, 5), (3, 3, 2, 5)])
def test_image_grid_shows_every_image_as_it_is(shape: tuple[int, ...]) -> None:
    images = torch.linspace(0, 1, int(np.prod(shape))).reshape(shape)
    figure = plots.image_grid(images, ["a", "b", "c"], columns=2)
    assert [panel.get_title() for panel in figure.axes] == ["a", "b", "c"]
    assert figure.axes[0].get_subplotspec().get_geometry()[:2] == (2, 2)
    for image, drawn in zip(images, shown(figure), strict=True):
        expected = image.movedim(0, -1).squeeze(-1) if image.ndim == 3 else image
        assert np.allclose(drawn, expected)


def test_image_grid_scales_bytes_by_255_and_other_ranges_together() -> None:
    assert shown(plots.image_grid(torch.full((1, 2, 2), 51, dtype=torch.uint8)))[0].max() == pytest.approx(0.2)
    first, second = shown(plots.image_grid(torch.tensor([[[-2.0, 0.0]], [[0.0, 2.0]]])))
    assert first.tolist() == [[0, 0.5]]
    assert second.tolist() == [[0.5, 1]]
    assert shown(plots.image_grid(torch.full((1, 2, 2), -3.0)))[0].tolist() == [[0, 0], [0, 0]]


def test_image_grid_draws_into_the_given_figure() -> None:
    figure = Figure()
    assert plots.image_grid(torch.rand(2, 4, 4), figure=figure) is figure
    assert len(figure.axes) == 2
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("images", "keywords", "message"),
    [
        (torch.zeros(4, 4), {}, "images"),
        (torch.zeros(2, 2, 4, 4), {}, r"got \[2, 2, 4, 4\]"),
        (torch.zeros(0, 4, 4), {}, "at least one"),
        (torch.full((1, 4, 4), torch.nan), {}, "images: expected finite"),
        (torch.zeros(2, 4, 4), {"titles": ["one"]}, "titles: expected one for each of 2 images, got 1"),
        (torch.zeros(2, 4, 4), {"columns": 0}, "columns"),
    ],
)
def test_image_grid_refuses(images: Tensor, keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.image_grid(images, **keywords)


def test_image_grid_refuses_integers_of_unknown_range() -> None:
    with pytest.raises(TypeError, match="images: expected a floating-point tensor"):
        plots.image_grid(torch.zeros(1, 4, 4, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------- segmentation

VOID = 9


def segmented(count: int = 2, classes: int = 3, height: int = 4, width: int = 6) -> tuple[Tensor, Tensor, Prediction]:
    """Images, truth with a void corner, and the prediction of five draws."""
    generator = torch.Generator().manual_seed(0)
    draws = (2 * torch.randn(5, count, height, width, classes, generator=generator)).softmax(-1)
    total = torch.special.entr(draws.mean(0)).sum(-1)
    aleatoric = torch.special.entr(draws).sum(-1).mean(0)
    likelihood = Categorical(class_dim=1, ignore_index=VOID)
    prediction = ClassPrediction(draws.mean(0), total, aleatoric, total - aleatoric, 5, likelihood)
    truth = torch.randint(classes, (count, height, width), generator=generator)
    truth[:, :2, :2] = VOID
    return torch.rand(count, 3, height, width, generator=generator), truth, prediction


def panels(figure: Figure, columns: int = 6) -> list[list[Axes]]:
    """The axes with an image, row by row."""
    drawn = [ax for ax in figure.axes if ax.images]
    return [drawn[start : start + columns] for start in range(0, len(drawn), columns)]


def test_uncertainty_maps_show_each_part_in_its_column() -> None:
    images, truth, prediction = segmented()
    figure = plots.uncertainty_maps(images, truth, prediction, class_names=["a", "b", "c"])
    figure.canvas.draw()
    rows = panels(figure)
    assert len(rows) == 2
    assert [ax.get_title() for ax in rows[0]] == ["image", "truth", "prediction", "total", "aleatoric", "epistemic"]
    for i, row in enumerate(rows):
        shown = [np.ma.asarray(ax.images[0].get_array()) for ax in row]
        assert np.allclose(shown[0], images[i].movedim(0, -1))
        assert shown[1].mask.tolist() == (truth[i] == VOID).tolist()
        assert shown[1].compressed().tolist() == truth[i][truth[i] != VOID].tolist()
        assert np.array_equal(shown[2], prediction.mean[i].argmax(-1))
        for values, name in zip(shown[3:], ("total", "aleatoric", "epistemic"), strict=True):
            assert np.allclose(values, getattr(prediction, name)[i])


def test_uncertainty_maps_share_colors_and_scales() -> None:
    images, truth, prediction = segmented()
    rows = panels(plots.uncertainty_maps(images, truth, prediction))
    for row in rows:
        labels = torch.arange(3).numpy()
        known, predicted = (ax.images[0].cmap(ax.images[0].norm(labels)) for ax in row[1:3])
        assert np.array_equal(known, predicted)
        assert len(np.unique(known, axis=0)) == 3
        assert row[1].images[0].cmap.get_bad()[:3].tolist() == [0.6, 0.6, 0.6]
        limits = [ax.images[0].get_clim() for ax in row[3:]]
        assert limits[0] == limits[1] == (0, pytest.approx(prediction.total.max().item()))
        assert limits[2] == (0, pytest.approx(prediction.epistemic.max().item()))


def test_uncertainty_maps_name_the_classes_that_are_seen() -> None:
    images, truth, prediction = segmented(1, classes=4)
    truth[truth == 1] = 0
    seen = set(truth.unique().tolist()) | set(prediction.predicted.unique().tolist())
    figure = plots.uncertainty_maps(images, truth, prediction, class_names=["a", "b", "c", "d"], figure=Figure())
    (legend,) = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    expected = ["abcd"[label] for label in sorted(seen - {VOID})]
    assert [text.get_text() for text in legend.get_texts()] == [*expected, "void"]
    assert plt.get_fignums() == []


@pytest.mark.parametrize("classes", [2, 11, 18, 30])
def test_class_colors_differ_and_are_not_that_of_void(classes: int) -> None:
    images, truth, prediction = segmented(1, classes=classes)
    truth[truth != VOID] = 0
    colors = panels(plots.uncertainty_maps(images, truth.clamp(max=0), prediction))[0][1].images[0].cmap
    found = colors(np.arange(classes))
    assert len(np.unique(found.round(6), axis=0)) == classes
    assert np.ptp(found[:, :3], axis=1).min() > 0.05, "no gray"


def test_uncertainty_maps_of_a_point_estimate_and_gray_images() -> None:
    images, truth, prediction = segmented(1)
    certain = dataclasses.replace(prediction, epistemic=torch.zeros_like(prediction.epistemic))
    plots.uncertainty_maps(images[:, 0], truth, certain).canvas.draw()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(2, 3, 4, 5)}, "images: expected 2 of 4 by 6 pixels"),
        ({"images": torch.rand(1, 3, 4, 6)}, "images: expected 2 of 4 by 6 pixels"),
        ({"images": torch.rand(2, 2, 4, 6)}, r"images: expected \[N, H, W\]"),
        ({"truth": torch.zeros(2, 4, 5, dtype=torch.long)}, r"truth: .*\[2, 4, 6\]"),
        ({"truth": torch.full((2, 4, 6), 3)}, r"truth: expected labels in 0 \.\. 2, got 3"),
        ({"class_names": ["a"]}, "class_names: expected one for each of 3 classes, got 1"),
    ],
)
def test_uncertainty_maps_refuse(change: dict[str, object], message: str) -> None:
    images, truth, prediction = segmented()
    with pytest.raises(ValueError, match=message):
        plots.uncertainty_maps(**{"images": images, "truth": truth, "prediction": prediction} | change)
    assert plt.get_fignums() == []


def test_uncertainty_maps_are_of_pixels() -> None:
    images, truth, prediction = segmented()
    rows = dataclasses.replace(prediction, mean=prediction.mean[:, 0, 0])
    with pytest.raises(ValueError, match=r"prediction: expected class probabilities of pixels.*\[2, 3\]"):
        plots.uncertainty_maps(images, truth, rows)


def test_pit_histogram_is_flat_at_one_within_its_band():
    histogram = metrics.pit_histogram(torch.arange(0.5, 200) / 200, 10)
    ax = plots.pit_histogram(histogram)
    assert [bar.get_height() for bar in ax.patches[:10]] == pytest.approx([1.0] * 10)
    low, high = scipy.stats.binom.ppf([0.025, 0.975], 200, 0.1) / 20
    assert sorted(ax.patches[10].get_bbox().intervaly) == pytest.approx([low, high])


def test_quantile_calibration_shows_shares_and_binomial_band():
    pit = torch.arange(0.5, 100) / 100
    ax = plots.quantile_calibration(metrics.quantile_calibration(pit.square(), [0.25, 0.81]), level=0.9)
    assert ax.lines[1].get_ydata().tolist() == pytest.approx([0.5, 0.9])
    assert "0.170" in ax.get_title()
    ends = ax.collections[0].get_datalim(ax.transData).intervaly
    assert ends.tolist() == pytest.approx([scipy.stats.binom.ppf(0.05, 100, 0.25) / 100, 0.87], abs=0.011)


@pytest.mark.parametrize("draw", [plots.pit_histogram, plots.quantile_calibration])
def test_calibration_figures_refuse_raw_values(draw):
    with pytest.raises(TypeError, match="expected what metrics"):
        draw(torch.rand(5))


# ------------------------------------------------------------------------------------------------------- simplex


def test_simplex_marks_the_means_and_colors_the_density(ax: Axes) -> None:
    """Dir(2, 3, 4) has mean (2, 3, 4) / 9; its mode (1, 2, 3) / 6 is in the darkest region, corners in the lightest."""
    plots.simplex(torch.tensor([2.0, 3.0, 4.0]), names=["a", "b", "c"], ax=ax)
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    at = np.ravel([*line(ax, "mean")])
    np.testing.assert_allclose(at, np.array([2.0, 3.0, 4.0]) / 9 @ corners)
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    assert ax.get_title() == r"$\alpha_0$ = 9"
    (contours,) = [artist for artist in ax.collections if hasattr(artist, "levels")]
    assert contours.levels[0] == -6.0 and contours.levels[-1] == pytest.approx(0.0, abs=1e-5)
    mode = np.array([1.0, 2.0, 3.0]) / 6 @ corners
    lightest, darkest = contours.get_paths()[0], contours.get_paths()[-1]
    assert darkest.contains_point(mode)
    for corner in corners:
        near = 0.98 * corner + 0.02 * mode
        assert lightest.contains_point(near) and not darkest.contains_point(near)


def test_simplex_of_draws_is_their_mixture(ax: Axes) -> None:
    """Three draws at the corners: their means as rings, the mean of means in the middle, where the density is low."""
    plots.simplex(20.0 * torch.eye(3) + 2.0, ax=ax)
    rings = np.array(line(ax, "mean of a draw"))
    assert rings.shape == (2, 3)
    (cross,) = [artist for artist in ax.lines if artist.get_label() == "mean"]
    np.testing.assert_allclose(np.ravel(cross.get_data()), [0.5, 0.75**0.5 / 3])
    (contours,) = [artist for artist in ax.collections if hasattr(artist, "levels")]
    assert not any(path.contains_point((0.5, 0.75**0.5 / 3)) for path in contours.get_paths()[12:])


def test_simplex_of_the_uniform_distribution_is_even(ax: Axes) -> None:
    plots.simplex(torch.ones(3), ax=ax)
    (contours,) = [artist for artist in ax.collections if hasattr(artist, "levels")]
    filled = [path for path in contours.get_paths() if len(path.vertices)]
    assert len(filled) == 1 and filled[0].contains_point((0.5, 0.2)) and filled[0].contains_point((0.05, 0.02))


@pytest.mark.parametrize(
    ("concentrations", "options", "message"),
    [
        (torch.ones(4), {}, r"^concentrations: expected shape \[3\] or \[K, 3\], got \[4\]"),
        (torch.ones(2, 2, 3), {}, r"^concentrations: expected shape"),
        (torch.tensor([1.0, 0.0, 1.0]), {}, r"^concentrations: expected positive values, got 0"),
        (torch.ones(3), {"names": "abc"}, r"^names: expected the names of three classes"),
        (torch.ones(3), {"resolution": 2}, r"^resolution: expected an int of at least 10"),
    ],
)
def test_simplex_refuses_what_it_cannot_draw(concentrations: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.simplex(concentrations, **options)  # type: ignore[arg-type]
