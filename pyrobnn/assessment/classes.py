"""The report of a classifier."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrobnn.assessment.base import Assessor, Settings, interval, values_of
from pyrobnn.assessment.bootstrap import Score, bootstrap
from pyrobnn.assessment.stream import Seen
from pyrobnn.metrics.calibration import bin_sums, make_curve, width_edges
from pyrobnn.metrics.scores import brier
from pyrobnn.metrics.selective import RiskCoverage, risk_coverage
from pyrobnn.prediction import ClassPrediction, Prediction
from pyrobnn.prediction.held_out import held_out_classes
from pyrobnn.reporting.figures import panel
from pyrobnn.reporting.plots.classification import draw_confidence, draw_reliability
from pyrobnn.reporting.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ClassAssessor"]

NUM_BINS = 15
MAX_CLASSES = 30
"""More classes have no table of their own."""

TITLES = {"accuracy": "accuracy", "nll": "NLL [nats]", "brier": "Brier score", "ece": f"ECE ({NUM_BINS} bins)"}


@dataclass(frozen=True, eq=False)
class Labels:
    """What is kept of each label that was observed, ``[n]`` each; ``owner`` is the number of its input."""

    owner: Tensor
    label: Tensor
    predicted: Tensor
    confidence: Tensor
    nll: Tensor
    brier: Tensor
    total: Tensor
    epistemic: Tensor

    @staticmethod
    def of(prediction: Prediction, targets: Tensor | None, first: int) -> Labels:
        """The labels of a batch."""
        found, labels, mask = held_out_classes(prediction, targets)
        probs = found.mean[mask]
        confidence, predicted = probs.max(-1)
        owner = torch.arange(first, first + len(found), device=mask.device)
        owner = owner.reshape(-1, *(1,) * (mask.dim() - 1)).expand(mask.shape)[mask]
        assert targets is not None
        log_prob = found.log_prob(targets)[mask]
        parts = [owner, labels, predicted, confidence, -log_prob, brier(probs, labels, "none")]
        parts += [found.total[mask], found.epistemic[mask]]
        return Labels(*(part.detach().cpu() for part in parts))

    @staticmethod
    def join(parts: list[Labels]) -> Labels:
        """All labels of several batches."""
        return Labels(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Labels)))

    @property
    def correct(self) -> Tensor:
        """Whether each label was predicted."""
        return self.predicted == self.label

    def draw_reliability(self, ax: Axes | None = None) -> Axes:
        """Accuracy by confidence."""
        edges = width_edges(NUM_BINS, self.confidence)
        curve = make_curve(edges, *bin_sums(self.confidence, self.correct.double(), edges))
        return draw_reliability(curve, ax=ax)

    def draw_confidence(self, ax: Axes | None = None) -> Axes:
        """How confident wrong and right predictions are."""
        return draw_confidence(self.confidence, self.correct, ax=ax)

    def scores(self, counts: Tensor) -> dict[str, float]:
        """The scores by how often each input counts."""
        weight = counts[self.owner]
        total = weight.sum()
        edges = width_edges(NUM_BINS, self.confidence)
        place = (torch.bucketize(self.confidence, edges) - 1).clamp(0, NUM_BINS - 1)
        gap = weight * (self.confidence.double() - self.correct.double())
        gaps = torch.bincount(place, gap, minlength=NUM_BINS).abs().sum()
        return {
            "accuracy": float((weight * self.correct).sum() / total),
            "nll": float((weight * self.nll.double()).sum() / total),
            "brier": float((weight * self.brier.double()).sum() / total),
            "ece": float(gaps / total),
        }


class ClassAssessor(Assessor):
    """Scores, reliability before and after temperature scaling, and classes one by one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.extremes["Wrong, and most certain"] = self._extremes()
        self._parts: list[Labels] = []
        self._calibrated: list[Labels] = []
        self.scores: dict[str, Score] = {}
        self.after: dict[str, Score] = {}

    def uncertainty(self, prediction: Prediction) -> dict[str, Tensor]:
        """Entropy, mutual information and one minus the largest probability; of several labels their mean."""
        found = {
            "entropy [nats]": prediction.total,
            "mutual information [nats]": prediction.epistemic,
            "1 - largest probability": prediction.least_confidence,
        }
        return {name: value.reshape(len(value), -1).mean(1) for name, value in found.items()}

    def cells(self, prediction: Prediction, targets: Tensor | None, index: int) -> dict[str, object]:
        """The label, and the most probable classes; of several labels the entropy only."""
        probs = prediction.mean[index]
        if probs.dim() > 1:
            return {"entropy": f"{float(prediction.total[index].mean()):.3f}"}
        likely = probs.topk(min(2, len(probs)))
        found: dict[str, object] = {} if targets is None else {"true": self._name(int(targets[index]))}
        for rank, (p, c) in enumerate(zip(likely.values.tolist(), likely.indices.tolist(), strict=True)):
            found["predicted" if not rank else "next"] = f"{self._name(c)} ({p:.3f})"
        return found

    def add_targets(self, seen: Seen) -> None:
        """Keeps a few numbers of each label."""
        labels = Labels.of(seen.prediction, seen.targets, seen.first)
        self._parts.append(labels)
        calibrator = self.settings.calibrator
        if calibrator is not None:
            self._calibrated.append(Labels.of(calibrator(seen.prediction), seen.targets, seen.first))
        keys = torch.full((len(seen.prediction),), torch.inf)
        if seen.prediction.mean.dim() == 2:
            wrong = labels.owner[~labels.correct] - seen.first
            keys[wrong] = labels.total[~labels.correct].float()
        cells = partial(self.cells, seen.prediction, seen.targets)
        self.extremes["Wrong, and most certain"].add(keys, seen.first, seen.inputs, cells)

    def finish(self) -> dict[str, Any]:
        """Scores with intervals, before and after calibration."""
        self.labels = Labels.join(self._parts)
        self._resamples = self.settings.num_bootstrap, self.settings.seed
        self.scores = bootstrap(self.labels.scores, [self.num_inputs], *self._resamples)
        values: dict[str, Any] = {"scores": values_of(self.scores), "num_targets": len(self.labels.label)}
        if self._calibrated:
            self.calibrated = Labels.join(self._calibrated)
            self.after = bootstrap(self.calibrated.scores, [self.num_inputs], *self._resamples)
            values |= {"calibrated_scores": values_of(self.after), "temperature": self._temperature}
        return values

    def write_scores(self, page: Report) -> None:
        """Appends scores, reliability, confidence, and the classes."""
        page.section("Scores", self._verdict())
        rows = []
        for name, score in self.scores.items():
            row: dict[str, object] = {"score": TITLES[name], "value": score.value, "95 % interval": interval(score)}
            if self.after:
                row |= {"after scaling": self.after[name].value, "its interval": interval(self.after[name])}
            rows.append(row)
        caption = f"{len(self.labels.label):,} labels of {self.num_inputs:,} test inputs"
        formats = {"value": ".3f"} | ({"after scaling": ".3f"} if self.after else {})
        page.table(rows, caption, formats)
        page.section("Reliability", "Bars below the diagonal mean overconfidence, bars above it underconfidence.")
        alt = "Accuracy, and right and wrong predictions, by bin of confidence."
        shown = {"as predicted": self.labels}
        if self.after:
            page.paragraph(
                f"Temperature scaling was fitted to the calibration data: T = {self._temperature:.3f} divides the "
                "logarithms of the probabilities, which leaves the predicted class as it is."
            )
            shown["after scaling"] = self.calibrated
        drawn = {"Reliability": Labels.draw_reliability, "Confidence": Labels.draw_confidence}
        for what, draw in drawn.items():
            page.figures([(panel(partial(draw, kept)), f"{what} {name}", alt) for name, kept in shown.items()])
        self._write_classes(page)

    def selective(self) -> tuple[dict[str, RiskCoverage], str]:
        """Of the zero-one error."""
        rows, error = self.labels, ~self.labels.correct
        found = dict(zip(self.uncertainty_names, (rows.total, rows.epistemic, 1.0 - rows.confidence), strict=True))
        kept = [name for name in found if name in self.informative(self.inside)]
        return {name: risk_coverage(found[name], error) for name in kept or list(found)[:1]}, "error rate"

    @property
    def uncertainty_names(self) -> list[str]:
        """Names of the uncertainties."""
        return list(self.inside)

    @property
    def _temperature(self) -> float:
        calibrator = self.settings.calibrator
        assert calibrator is not None
        return float(calibrator.get_buffer("temperature"))

    def _verdict(self) -> str:
        confidence, accuracy = float(self.labels.confidence.double().mean()), self.scores["accuracy"]
        if accuracy.low <= confidence <= accuracy.high:
            verdict = "within its interval: no over- or underconfidence on the whole"
        else:
            verdict = "outside its interval: " + (
                "predictions are overconfident" if confidence > accuracy.value else "predictions are underconfident"
            )
        return (
            f"Accuracy is {accuracy.value:.3f} ({interval(accuracy)}); mean confidence is {confidence:.3f}, {verdict}."
        )

    def _write_classes(self, page: Report) -> None:
        found = self.labels.label.unique().tolist()
        if len(found) > MAX_CLASSES:
            return
        rows = []
        for c in found:
            mask = self.labels.label == c
            confidence = float(self.labels.confidence[mask].mean())
            share = float(self.labels.correct[mask].double().mean())
            rows.append({"class": self._name(c), "labels": int(mask.sum()), "recall": share, "confidence": confidence})
        page.section("Classes", "Share of each class that is predicted as such, and the mean confidence.")
        page.table(rows, formats={"recall": ".3f", "confidence": ".3f"})

    def _name(self, label: int) -> str:
        names = self.settings.class_names
        return str(label) if names is None or not 0 <= label < len(names) else names[label]


def check_class_names(names: Any, prediction: ClassPrediction) -> None:
    """Refuses names that are not as many as the classes.

    Raises:
        ValueError: If they are not.
    """
    if names is not None and len(names) != prediction.mean.shape[-1]:
        raise ValueError(
            f"class_names: expected one for each of {prediction.mean.shape[-1]} classes, got {len(names)}."
        )
