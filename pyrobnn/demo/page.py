"""The demo's report page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrobnn.demo.digits import NUM_KNOWN, Digits
from pyrobnn.demo.methods import COLUMNS, Result
from pyrobnn.diagnostics import CheckReport
from pyrobnn.reporting import plots
from pyrobnn.reporting.description import describe
from pyrobnn.reporting.figures import panel
from pyrobnn.reporting.report import Report

__all__ = ["write_report"]

NUM_IMAGES = 8

_METRICS = """NLL: negative log likelihood in nats. ECE: expected calibration error, 15 bins. AUROC: how well unknown
digits are separated from known ones, by mutual information (MI) or predictive entropy (H); 0.5 is chance. A point
estimate has no mutual information. Step: processor time of a training step as a multiple of the plain network's,
interleaved in one run; that of SWAG and Laplace is the step of the point they start from, that of the ensemble trains
all members.
Seconds: training, what follows it, and prediction."""

_CALIBRATION = """On the held-out images of known digits. Bars above the diagonal mean underconfidence. Mean field errs
so when data are few for its weights: it must pay, in KL, for every weight that it pins down. So would Laplace when
classes are easily separated, as the curvature is small then and the prior stays; the precision of its prior is
therefore chosen on validation images."""

_CONFIDENCE = """Right and wrong predictions of the same images by their confidence, on a logarithmic scale."""

_PARTS = """Total uncertainty is the entropy of the averaged class probabilities. Its aleatoric part is the mean entropy
of the single draws: what remains ambiguous whichever weights are right. Its epistemic part is the mutual information
of label and weights: what the draws disagree about. Unknown digits should lie to the right of the known ones."""

_LOAD = """import arviz as az
import pyrobnn as pb
from pyrobnn import demo

data = demo.load_digits(seed={seed})
model, guide = pb.load("checkpoint", net=demo.network())
prediction = pb.predict(model, guide, data.unknown[0])
print(prediction.epistemic.mean())

print(az.loo(az.from_netcdf("posterior.nc")))"""


def write_report(
    path: Path,
    data: Digits,
    results: Sequence[Result],
    shown: Result,
    metrics: Mapping[str, Any],
    checks: CheckReport,
) -> None:
    """Writes the page.

    Args:
        path: The file.
        data: The digits.
        results: All fitted methods.
        shown: The one whose predictions and posterior are looked at closely.
        metrics: What :func:`pyrobnn.demo.run` returns.
        checks: The checks of ``shown``.
    """
    name, labels = shown.method.name, data.test[1]
    report = Report(
        "Digits, known and unknown",
        f"pyrobnn {metrics['version']}: digits 0-7 are learned, 8 and 9 never seen; {metrics['epochs']} epochs, seed "
        f"{metrics['seed']}",
    )
    report.section("Methods", _METRICS)
    report.table(
        [{title: row[key] for title, key, _ in COLUMNS} for row in metrics["methods"]],
        caption=f"{metrics['num_test']} held-out known digits, {metrics['num_unknown']} unknown ones",
        formats={title: style for title, _, style in COLUMNS},
    )

    report.section("Reliability", _CALIBRATION)
    reliability = partial(plots.reliability, num_bins=15)  # as many bins as in the table
    report.figures(_by_method(results, reliability, labels, "accuracy by bin of confidence"))
    report.section("Confidence", _CONFIDENCE)
    histogram = plots.confidence_histogram
    report.figures(_by_method(results, histogram, labels, "right and wrong predictions by bin of confidence"))

    report.section("Most and least certain images", f"Of all held-out images, known and unknown, under {name}.")
    for title, (images, captions) in _extremes(shown, data).items():
        report.paragraph(f"{title}, with the true digit and the three most probable classes:")
        report.images(images, captions, "Digit")

    report.section("Uncertainty of known and unknown digits", _PARTS)
    report.figures(_uncertainties(shown))

    report.section("Training", "The evidence lower bound and its parts, in nats per datum.")
    for result in results:
        if result.history.divergence_name == "KL":
            report.figure(
                _training(result),
                f"{result.method.name}: ELBO = expected log likelihood - KL",
                "The ELBO rises toward a plateau while the divergence falls.",
            )

    report.section("What became of the network", f"One row per parameter: its prior, and its factor in {name}.")
    report.preformatted(str(describe(shown.model, shown.guide)))

    report.section("Checks", f"What pyrobnn.check says about {name}. A warning is a reason to look, not a failure.")
    report.table(
        [{"check": c.name, "result": c.status, "value": c.value, "reason": c.reason} for c in checks.checks],
        formats={"value": ".3g"},
    )

    report.section("Go on from here", f"Beside this page lie {name}'s checkpoint and draws:")
    report.preformatted(_LOAD.format(seed=metrics["seed"]))
    report.write(path)


def _by_method(
    results: Sequence[Result], plot: Callable[..., Axes], labels: Tensor, alt: str
) -> list[tuple[Figure, str, str]]:
    """One panel for each method."""
    return [
        (panel(partial(plot, result.test.mean, labels)), result.method.name, f"{result.method.name}: {alt}")
        for result in results
    ]


def _extremes(shown: Result, data: Digits) -> dict[str, tuple[Tensor, list[str]]]:
    """Images and their captions by what they are."""
    images = torch.cat([data.test[0], data.unknown[0]])
    labels = torch.cat([data.test[1], data.unknown[1]])
    probs = torch.cat([shown.test.mean, shown.unknown.mean])
    order = torch.cat([shown.test.total, shown.unknown.total]).argsort(stable=True)
    groups = {"Most certain": order[:NUM_IMAGES], "Least certain": order.flip(0)[:NUM_IMAGES]}
    return {name: (images[rows], [_caption(labels[i], probs[i]) for i in rows]) for name, rows in groups.items()}


def _caption(label: Tensor, probs: Tensor) -> str:
    likely = probs.topk(3)
    rows = [f"{c}: {p:.3f}" for p, c in zip(likely.values.tolist(), likely.indices.tolist(), strict=True)]
    name = f"{int(label)}" if label < NUM_KNOWN else f"{int(label)}, unknown"
    return "\n".join([name, *rows])


def _uncertainties(shown: Result) -> list[tuple[Figure, str, str]]:
    panels = []
    for part in ("total", "aleatoric", "epistemic"):
        groups = {"known": getattr(shown.test, part), "unknown": getattr(shown.unknown, part)}
        draw = partial(plots.uncertainty_histogram, groups, xlabel=f"{part} [nats]", bins=25)
        panels.append((panel(draw), f"{part} uncertainty", f"Histograms of the {part} uncertainty of both groups."))
    return panels


def _training(result: Result) -> Figure:
    figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    plots.elbo(result.history, ax=ax)
    return figure
