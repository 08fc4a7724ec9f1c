"""What reports of classes and of real-valued targets share: uncertainties, examples, detection, selective risk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrobnn.assessment.bootstrap import Score, auroc_of_counts, bootstrap
from pyrobnn.assessment.examples import Extremes, write_examples
from pyrobnn.assessment.stream import Seen
from pyrobnn.calibration import ClassCalibrator
from pyrobnn.metrics.detection import detection_report
from pyrobnn.metrics.selective import RiskCoverage
from pyrobnn.prediction import Prediction
from pyrobnn.reporting import plots
from pyrobnn.reporting.figures import panel
from pyrobnn.reporting.report import Report

__all__ = ["Assessor", "Settings", "interval", "values_of"]


@dataclass(frozen=True)
class Settings:
    """What the caller chose; see :func:`pyrobnn.report`."""

    num_bootstrap: int
    seed: int
    num_examples: int
    class_names: Sequence[str] | None
    feature_names: Sequence[str] | None
    images: bool | None
    calibrator: ClassCalibrator | None


class Assessor(ABC):
    """Takes predictions batch by batch; of each target and input it keeps a few numbers.

    Args:
        settings: What the caller chose.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.num_inputs = 0
        self.extremes = {"Most certain": self._extremes(), "Least certain": self._extremes()}
        self.outside: dict[str, dict[str, Tensor]] = {}
        self._uncertainty: list[dict[str, Tensor]] = []
        self._of_outside: dict[str, list[dict[str, Tensor]]] = {}

    # ------------------------------------------------------------------------------------------- for each kind

    @abstractmethod
    def uncertainty(self, prediction: Prediction) -> dict[str, Tensor]:
        """Uncertainties of each input ``[N]`` by name, the total one first."""

    @abstractmethod
    def cells(self, prediction: Prediction, targets: Tensor | None, index: int) -> dict[str, object]:
        """What is shown of the prediction of one input."""

    @abstractmethod
    def add_targets(self, seen: Seen) -> None:
        """Keeps what the scores need of a batch of test data."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Computes all values, as plain numbers by name, for JSON."""

    @abstractmethod
    def write_scores(self, page: Report) -> None:
        """Appends the scores, calibration and what belongs to them."""

    @abstractmethod
    def selective(self) -> tuple[dict[str, RiskCoverage], str]:
        """Risk-coverage curves by uncertainty, and the name of the error."""

    # -------------------------------------------------------------------------------------------------- shared

    def add(self, seen: Seen) -> None:
        """Takes a batch of test data into account."""
        found = {name: value.detach().cpu() for name, value in self.uncertainty(seen.prediction).items()}
        self._uncertainty.append(found)
        keys = next(iter(found.values()))
        cells = partial(self.cells, seen.prediction, seen.targets)
        self.extremes["Most certain"].add(keys, seen.first, seen.inputs, cells)
        self.extremes["Least certain"].add(-keys, seen.first, seen.inputs, cells)
        self.add_targets(seen)
        self.num_inputs += len(seen.prediction)

    def add_outside(self, name: str, seen: Seen) -> None:
        """Takes a batch of inputs from elsewhere into account."""
        found = {key: value.detach().cpu() for key, value in self.uncertainty(seen.prediction).items()}
        self._of_outside.setdefault(name, []).append(found)
        group = self.extremes.setdefault(f"Most certain of {name}", self._extremes())
        cells = partial(self.cells, seen.prediction, None)
        group.add(next(iter(found.values())), seen.first, seen.inputs, cells)

    def detection(self) -> dict[str, dict[str, Any]]:
        """How well each uncertainty separates each group from the test data, by the name of the group."""
        self.inside = _joined(self._uncertainty)
        self.outside = {name: _joined(parts) for name, parts in self._of_outside.items()}
        found: dict[str, dict[str, Any]] = {}
        for name, scores in self.outside.items():
            found[name] = {}
            for key, inside in self.informative(self.inside).items():
                measures: dict[str, Any] = dict(detection_report(inside, scores[key]))
                counts = auroc_of_counts(inside, scores[key])
                sizes = [len(inside), len(scores[key])]
                score = bootstrap(counts, sizes, self.settings.num_bootstrap, self.settings.seed)["auroc"]
                found[name][key] = measures | {"auroc_interval": [score.low, score.high]}
        return found

    def informative(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those uncertainties that are not one number for all inputs, as the epistemic part of a point estimate is."""
        groups = [scores, *self.outside.values()]
        first = {name: value[0] for name, value in scores.items()}
        return {
            name: value
            for name, value in scores.items()
            if not all(torch.allclose(group[name], first[name], rtol=0.0, atol=1e-6) for group in groups)
        }

    def write_detection(self, page: Report, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Appends the detection of each group, with histograms of the uncertainties."""
        rows = [
            {
                "inputs": group,
                "number": len(next(iter(self.outside[group].values()))),
                "uncertainty": name,
                "AUROC": measures["auroc"],
                "95 % interval": interval(Score(measures["auroc"], *measures["auroc_interval"])),
                "AUPR": measures["aupr_out"],
                "FPR 95": measures["fpr95_out"],
            }
            for group, by_name in found.items()
            for name, measures in by_name.items()
        ]
        page.table(rows, formats=dict.fromkeys(("AUROC", "AUPR", "FPR 95"), ".3f"))
        shown = dict(list(self.outside.items())[:6])
        panels = []
        for name, inside in self.informative(self.inside).items():
            groups = {"test": inside} | {group: scores[name] for group, scores in shown.items()}
            draw = partial(plots.uncertainty_histogram, groups, xlabel=name, bins=25)
            panels.append((panel(draw), name[:1].upper() + name[1:], f"Histograms of the {name} of each group."))
        if panels:
            page.figures(panels)

    def write_selective(self, page: Report, shares: Sequence[float] = (1.0, 0.9, 0.75, 0.5)) -> None:
        """Appends risk-coverage curves and the risk at a few coverages."""
        curves, error = self.selective()
        rows = []
        for name, curve in curves.items():
            at = {f"{share:.0%}": float(curve.risk[max(0, round(share * len(curve.risk)) - 1)]) for share in shares}
            rows.append({"uncertainty": name} | at | {"area": float(curve.aurc), "excess": float(curve.excess_aurc)})
        page.table(rows, f"{error[:1].upper() + error[1:]} when the most certain share is answered")
        draw = partial(plots.risk_coverage, curves, ylabel=error)
        page.figures([(panel(draw), "Risk and coverage", f"{error} against the share that is answered.")])

    def write_examples(self, page: Report) -> None:
        """Appends the examples of each group."""
        for title, group in self.extremes.items():
            if group.examples:
                page.paragraph(f"{title}:")
                write_examples(page, group.examples, self.settings.feature_names, self.settings.images)

    def _extremes(self) -> Extremes:
        return Extremes(self.settings.num_examples)


def interval(score: Score, spec: str = ".3f") -> str:
    """The ends of a score's interval."""
    return f"{format(score.low, spec)} to {format(score.high, spec)}"


def values_of(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Scores as plain numbers."""
    return {name: asdict(score) for name, score in scores.items()}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
