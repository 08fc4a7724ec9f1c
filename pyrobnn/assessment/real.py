"""The report of a regression."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.assessment.base import Assessor, Settings, interval, values_of
from pyrobnn.assessment.bootstrap import Score, bootstrap
from pyrobnn.assessment.stream import Seen
from pyrobnn.conformal import coverage_of_intervals
from pyrobnn.metrics.selective import RiskCoverage, risk_coverage
from pyrobnn.prediction import Prediction
from pyrobnn.prediction.regression_report import add_prediction
from pyrobnn.reporting import plots
from pyrobnn.reporting.figures import BLACK, BLUE, VERMILLION, new_axes, panel
from pyrobnn.reporting.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RealAssessor"]

MAX_POINTS = 150
"""So many predictions are drawn with their intervals."""
NUM_TARGETS = 200

TITLES = {
    "rmse": "RMSE",
    "r2": "R²",
    "nll": "NLL [nats]",
    "crps": "CRPS",
    "picp": "coverage of the 90 % interval",
    "mpiw": "mean width of the 90 % interval",
    "interval_score": "interval score at 90 %",
}


class RealAssessor(Assessor):
    """Scores, PIT, calibration of quantiles, coverage by uncertainty, and predictions with their intervals."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        from pyrobnn.assessment.recorded import RecordedScores  # loads torchmetrics

        self._recorded = RecordedScores()
        self._total: list[Tensor] = []
        self.scores: dict[str, Score] = {}

    def uncertainty(self, prediction: Prediction) -> dict[str, Tensor]:
        """Standard deviations: of the target, and of what more data would remove; of several targets their mean."""
        found = {"standard deviation": prediction.total.sqrt(), "epistemic deviation": prediction.epistemic.sqrt()}
        return {name: value.reshape(len(value), -1).mean(1) for name, value in found.items()}

    def cells(self, prediction: Prediction, targets: Tensor | None, index: int) -> dict[str, object]:
        """Target, mean and interval; of several targets the first."""
        one = prediction.rows(slice(index, index + 1))
        lower, upper = one.interval(0.9)
        found: dict[str, object] = {} if targets is None else {"target": _first(targets[index])}
        mean, std = _first(one.mean), float(one.std.mean())
        return found | {"mean": mean, "90 % interval": f"{_first(lower):.4g} to {_first(upper):.4g}", "std": std}

    def add_targets(self, seen: Seen) -> None:
        """Keeps a few numbers of each target."""
        add_prediction(self._recorded, seen.prediction, seen.targets, None, NUM_TARGETS)
        self._total.append(seen.prediction.total.detach().cpu())

    def finish(self) -> dict[str, Any]:
        """Scores with intervals."""
        self.report = self._recorded.report()
        rows = self._recorded.rows
        found = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        mask, nll = found.pop("mask"), found.pop("nll").double()
        self._rows = {name: value[mask].double() for name, value in found.items()}
        self._rows["total"] = torch.cat(self._total)[mask].double()
        owner = torch.arange(len(mask)).reshape(-1, *(1,) * (mask.dim() - 1)).expand(mask.shape)[mask]
        column = torch.arange(mask[0].numel()).reshape(mask.shape[1:]).expand(mask.shape)[mask]
        some = mask.reshape(len(mask), -1).any(1).double()
        resample = partial(_scores, self._rows, owner, column, nll, some)
        drawn = bootstrap(resample, [self.num_inputs], self.settings.num_bootstrap, self.settings.seed)
        exact = self.report.as_dict()
        self.scores = {name: Score(exact[name], score.low, score.high) for name, score in drawn.items()}
        coverage = dict(zip(self.report.levels.tolist(), self.report.coverage.tolist(), strict=True))
        by_level = {f"{level:.0%}": share for level, share in coverage.items()}
        return {"scores": values_of(self.scores), "num_targets": int(mask.sum()), "coverage": by_level}

    def write_scores(self, page: Report) -> None:
        """Appends scores, calibration, coverage and predictions."""
        low, high = self.scores["picp"].low, self.scores["picp"].high
        verdict = "as many as they ought to" if low <= 0.9 <= high else "fewer than 90 %" if high < 0.9 else "more"
        page.section("Scores", f"The 90 % intervals hold {self.scores['picp'].value:.1%} of the targets: {verdict}.")
        rows = [
            {"score": TITLES[name], "value": score.value, "95 % interval": interval(score, ".4g")}
            for name, score in self.scores.items()
        ]
        page.table(rows, f"{len(self._rows['y']):,} targets of {self.num_inputs:,} test inputs")
        page.section(
            "Calibration",
            "The histogram of the probability integral transform (PIT) is flat where predictions are calibrated; high "
            "at both ends it says that they are too narrow. Quantiles should lie on the diagonal. Intervals should "
            "cover as much where the network is unsure as where it is sure.",
        )
        panels = []
        if self.report.pit is not None and self.report.quantiles is not None:
            for draw, name in (
                (partial(plots.pit_histogram, self.report.pit), "PIT"),
                (partial(plots.quantile_calibration, self.report.quantiles), "Quantiles"),
            ):
                panels.append((panel(draw), name, f"{name} of the test targets."))
        panels.append((panel(self._draw_coverage), "Coverage by uncertainty", "Coverage of the 90 % intervals."))
        page.figures(panels)
        levels = zip(
            self.report.levels.tolist(), self.report.coverage.tolist(), self.report.width.tolist(), strict=True
        )
        table = [{"level": f"{level:.0%}", "coverage": share, "mean width": width} for level, share, width in levels]
        page.table(table, "Coverage of central intervals", {"coverage": ".3f"})
        page.section("Predictions", f"At most {MAX_POINTS} test targets with their means and 90 % intervals.")
        alt = "Predicted against true values, with intervals."
        page.figures([(panel(self._draw_predictions), "Predictions and targets", alt)])

    def selective(self) -> tuple[dict[str, RiskCoverage], str]:
        """Of the squared error."""
        error = (self._rows["mean"] - self._rows["y"]).square()
        return {"predictive variance": risk_coverage(self._rows["total"], error)}, "mean squared error"

    def _draw_coverage(self, ax: Axes | None = None) -> None:
        ax = new_axes(ax)
        rows = self._rows
        bins = min(10, max(1, len(rows["y"]) // 10))
        report = coverage_of_intervals(rows["lower"], rows["upper"], rows["y"], uncertainty=rows["total"], bins=bins)
        found = [row for row in report.rows if row.part.startswith("uncertainty")]
        place = np.arange(1, len(found) + 1)
        share = np.array([row.coverage for row in found])
        reach = np.array([[r.coverage - r.low for r in found], [r.high - r.coverage for r in found]]).clip(0)
        ax.errorbar(place, share, reach, fmt="o", color=BLUE, capsize=3, label="test, with 95 % interval")
        ax.axhline(0.9, color=BLACK, linestyle="--", linewidth=1, label="90 %")
        ax.set(xlabel=f"part of the targets, of {bins} by variance", ylabel="coverage", ylim=(None, 1.02))
        ax.legend()

    def _draw_predictions(self, ax: Axes | None = None) -> None:
        ax = new_axes(ax)
        rows = self._rows
        order = rows["y"].argsort(stable=True)
        at = order[torch.linspace(0, len(order) - 1, min(MAX_POINTS, len(order))).round().long()]
        y, mean, lower, upper = (rows[name][at].numpy() for name in ("y", "mean", "lower", "upper"))
        inside = (lower <= y) & (y <= upper)
        for mask, color, name in ((inside, BLUE, "target inside"), (~inside, VERMILLION, "target outside")):
            reach = np.abs(np.stack([mean - lower, upper - mean]))[:, mask]
            style: dict[str, Any] = {"fmt": "o" if color == BLUE else "s", "markersize": 3, "linewidth": 0.8}
            ax.errorbar(y[mask], mean[mask], reach, color=color, label=name, **style)
        ends = [float(y.min()), float(y.max())]
        ax.plot(ends, ends, color=BLACK, linestyle="--", linewidth=1)
        ax.set(xlabel="target", ylabel="predicted")
        ax.legend()


def _scores(
    rows: dict[str, Tensor], owner: Tensor, column: Tensor, nll: Tensor, some: Tensor, counts: Tensor
) -> dict[str, float]:
    """The scores by how often each input counts."""
    weight = counts[owner]
    total = weight.sum()

    def mean(values: Tensor) -> float:
        return float(torch.where(weight > 0, weight * values, 0.0).sum() / total)

    y, lower, upper = rows["y"], rows["lower"], rows["upper"]
    squares, covered = (rows["mean"] - y).square(), (lower <= y) & (y <= upper)
    size = int(column.max()) + 1
    by_column = [torch.bincount(column, weight * values, minlength=size) for values in (torch.ones_like(y), y, squares)]
    count, first, error = (value for value in by_column)
    spread = torch.bincount(column, weight * (y - (first / count)[column]).square(), minlength=size)
    miss = torch.relu(lower - y) + torch.relu(y - upper)
    return {
        "rmse": mean(squares) ** 0.5,
        "r2": float((1.0 - error / spread)[count > 0].mean()),
        "nll": float((counts * some * nll).sum() / (counts * some).sum()),
        "crps": mean(rows["crps"]),
        "picp": mean(covered.double()),
        "mpiw": mean(upper - lower),
        "interval_score": mean(upper - lower + miss / 0.05),
    }


def _first(values: Tensor) -> float:
    return float(values.reshape(-1)[0])
