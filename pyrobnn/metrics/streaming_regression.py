"""Scores of a regression that take their data batch by batch, as a torchmetrics object of sums."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from pyrobnn.core.arguments import check_positive_int, check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float, check_regression, check_row_weights, check_same_shape
from pyrobnn.metrics.intervals import LevelWeights, check_level_weights, check_levels, coverage_error, winkler
from pyrobnn.metrics.pit import (
    PitHistogram,
    QuantileCalibration,
    bin_shares,
    check_pit,
    effective_count,
    pit_shares,
)
from pyrobnn.metrics.regression import TargetMoments
from pyrobnn.metrics.regression_report import RegressionReport

__all__ = ["LEVELS", "RegressionScores"]

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Levels of intervals, unless others are asked for."""


def _merged(moments: Tensor) -> Tensor:
    """Moments of all processes ``[P, 4, ...]`` as those of one."""
    found = TargetMoments(*moments[0])
    for other in moments[1:]:
        found = found.merged(TargetMoments(*other))
    return torch.stack(list(found))


@explained
class RegressionScores(Metric):
    """Streaming scores of predictions of real-valued targets; keeps sums, for any number of examples.

    The results are those of all examples at once, whatever the batches. :func:`~pyrobnn.prediction.regression_report`
    feeds it from a model and a loader.

    Args:
        levels: Levels of central intervals, in ``(0, 1)``.
        level: The one of them that ``picp``, ``mpiw`` and ``interval_score`` are of; None takes the last.
        level_weights: Weights of the levels in CWCE: ``"level"``, ``"uniform"``, or one for each ``[J]``.
        num_bins: Number of bins of the PIT.

    Raises:
        ValueError: If an argument is out of its range, or ``level`` is not among ``levels``.
    """

    is_differentiable = False
    full_state_update = True

    moments: Tensor
    by_level: Tensor
    sums: Tensor
    bins: Tensor
    below: Tensor
    given: Tensor

    def __init__(
        self,
        levels: Sequence[float] | Tensor = LEVELS,
        level: float | None = None,
        *,
        level_weights: LevelWeights = "level",
        num_bins: int = 20,
    ) -> None:
        super().__init__()
        self.levels = check_levels(levels).cpu()
        self.level = float(self.levels[-1]) if level is None else level
        check_probability("level", self.level)
        if not bool((self.levels == torch.tensor(self.level, dtype=torch.float64)).any()):
            raise ValueError(f"level: expected one of levels, {self.levels.tolist()}, got {level!r}.")
        check_level_weights(level_weights, self.levels)
        check_positive_int("num_bins", num_bins)
        self.level_weights, self.num_bins = level_weights, num_bins
        self.quantile_levels = torch.arange(1, 20, dtype=torch.float64) / 20

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        self.add_state("moments", zeros(0), dist_reduce_fx=_merged)
        self.add_state("by_level", zeros(3, len(self.levels)), dist_reduce_fx="sum")  # covered, width, interval score
        self.add_state("bins", zeros(num_bins), dist_reduce_fx="sum")
        self.add_state("below", zeros(len(self.quantile_levels)), dist_reduce_fx="sum")
        # Sums of: targets, weights of targets, their squares, weights of examples; log densities, CRPS, energies.
        self.add_state("sums", zeros(7), dist_reduce_fx="sum")
        self.add_state("given", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")  # how many targets had which

    def update(
        self,
        mean: Tensor,
        y: Tensor,
        lower: Tensor,
        upper: Tensor,
        *,
        log_prob: Tensor | None = None,
        crps: Tensor | None = None,
        pit: Tensor | None = None,
        below: Tensor | None = None,
        energy: Tensor | None = None,
        weight: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            mean: Predictive means ``[N, ...]``.
            y: Targets of the same shape.
            lower: Lower ends of central intervals ``[J, N, ...]``, in the order of the levels.
            upper: Upper ends of the same shape.
            log_prob: Log densities of the examples' targets ``[N]``.
            crps: CRPS of each target ``[N, ...]``.
            pit: ``P(Y <= y)`` of each target ``[N, ...]``.
            below: ``P(Y < y)``, of counts.
            energy: Energy scores of the examples ``[N]``.
            weight: Weights of the examples ``[N]``.
            observed: Mask of the targets that count, ``[N, ...]``; others may be NaN. None: all.

        Raises:
            TypeError: If one is no floating-point tensor.
            ValueError: If shapes do not fit, values are not finite, weights are wrong, a lower end is above its upper
                end, or targets have another shape than those of earlier batches.
        """
        mask = torch.ones_like(y, dtype=torch.bool) if observed is None else observed
        check_same_shape(mask, "observed", y.shape, "y")
        mean, y = check_regression(mean=mean, y=torch.where(mask, y, mean))
        if not y.dim():
            raise ValueError("y: expected targets [N, ...], got a scalar.")
        shape = torch.Size([len(self.levels), *y.shape])
        lower, upper = check_float(lower, "lower", finite=False), check_float(upper, "upper", finite=False)
        check_same_shape(lower, "lower", shape, "levels and y")
        check_same_shape(upper, "upper", shape, "levels and y")
        if crossed := int((lower > upper).sum()):
            raise ValueError(f"lower: expected lower <= upper, violated at {crossed} of {lower.numel()} intervals.")
        if self.moments.numel() and self.moments.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"y: expected targets of shape {list(self.moments.shape[1:])} for each example, as in earlier batches, "
                f"got {list(y.shape[1:])}."
            )
        rows = torch.ones(len(y), dtype=torch.float64) if weight is None else check_row_weights(weight, len(y))
        rows = rows.to(y.device)
        each = torch.where(mask, rows.reshape(-1, *(1,) * (y.dim() - 1)), 0.0)
        some = rows * mask.reshape(len(y), -1).any(1)  # examples of which nothing was observed do not count

        moments = torch.stack(list(TargetMoments.of(mean.double(), y.double(), each))).to(self.moments.device)
        sums = [mask.sum().double(), each.sum(), each.square().sum(), some.sum()]
        for name, value, of, size in (
            ("log_prob", log_prob, some, y.shape[:1]),
            ("crps", crps, each, y.shape),
            ("energy", energy, some, y.shape[:1]),
        ):
            if value is not None:
                check_same_shape(value, name, size, "y")
                value = check_float(value, name, finite=False)
            sums.append(torch.zeros_like(sums[0]) if value is None else _dot(of, value.double()))
        by_pit = self._pit_sums(pit, below, each)
        count = int(mask.sum())
        given = [count * (value is not None) for value in (log_prob, crps, energy, pit)]

        # All is checked by now, so that a batch that is refused leaves no part of itself.
        self.moments = moments if not self.moments.numel() else _merged(torch.stack([self.moments, moments]))
        by_level = self._interval_sums(lower.double(), upper.double(), y.double(), each)
        self.by_level = self.by_level + by_level.to(self.by_level)
        self.sums = self.sums + torch.stack(sums).to(self.sums)
        if by_pit is not None:
            self.bins, self.below = self.bins + by_pit[0].to(self.bins), self.below + by_pit[1].to(self.below)
        self.given = self.given + torch.tensor(given, device=self.given.device)

    def _interval_sums(self, lower: Tensor, upper: Tensor, y: Tensor, each: Tensor) -> Tensor:
        """Coverage, width and score, summed over targets ``[3, J]``."""
        covered = ((lower <= y) & (y <= upper)).double()
        scores = [winkler(lower[j], upper[j], y, float(level)) for j, level in enumerate(self.levels)]
        parts = [covered, upper - lower, torch.stack(scores)]
        return torch.stack([torch.stack([_dot(each, value) for value in part]) for part in parts])

    def _pit_sums(self, pit: Tensor | None, below: Tensor | None, each: Tensor) -> tuple[Tensor, Tensor] | None:
        """Sums of weights in each bin, and below each quantile."""
        if pit is None:
            return None
        check_same_shape(pit, "pit", each.shape, "y")
        low, high = check_pit(pit, below)
        edges = torch.arange(self.num_bins + 1, dtype=torch.float64) / self.num_bins
        arguments = low.flatten(), high.flatten(), each.flatten()
        return bin_shares(*arguments, edges.to(high)), pit_shares(*arguments, self.quantile_levels.to(high))

    def compute(self) -> dict[str, Tensor]:
        """The scores that are single numbers, by name, of all examples so far (of all processes)."""
        return {name: torch.tensor(value) for name, value in self.report().as_dict().items()}

    def report(self) -> RegressionReport:
        """All scores of all examples since the last reset (of this process only).

        Raises:
            ValueError: If no target was observed.
        """
        targets, total, squares, examples, log_prob, crps, energy = self.sums.tolist()
        if not total:
            raise ValueError("y: no target was observed.")
        moments = TargetMoments(*self.moments)
        covered, width, scores = (self.by_level / total).cpu()
        r2 = float(moments.r2)
        if r2 != r2:
            warnings.warn("y: R² and R-CWCE are undefined, since a target is constant; both are NaN.", stacklevel=2)
        at = int((self.levels == self.level).nonzero()[0])
        cwce = float(coverage_error(covered, self.levels, self.level_weights))
        count = effective_count(torch.tensor(total).double(), torch.tensor(squares).double())
        has = [int(number) == int(targets) for number in self.given]
        edges = torch.arange(self.num_bins + 1, dtype=torch.float64) / self.num_bins
        return RegressionReport(
            num_targets=int(targets),
            rmse=float((moments.error.sum() / total).sqrt()),
            r2=r2,
            nll=-log_prob / examples if has[0] else None,
            crps=crps / total if has[1] else None,
            energy=energy / examples if has[2] else None,
            pinball=float((scores * (1.0 - self.levels)).mean() / 4.0),
            level=self.level,
            picp=float(covered[at]),
            mpiw=float(width[at]),
            interval_score=float(scores[at]),
            levels=self.levels,
            coverage=covered,
            width=width,
            cwce=cwce,
            epiw=float(width.mean()),
            r_cwce=(1.0 - r2) * cwce,
            pit=PitHistogram(edges, self.bins.cpu() / total, count) if has[3] else None,
            quantiles=QuantileCalibration(self.quantile_levels, self.below.cpu() / total, count) if has[3] else None,
        )


def _dot(weight: Tensor, values: Tensor) -> Tensor:
    """Σ ω s; a weight of 0 leaves out even what is infinite or NaN."""
    return torch.where(weight > 0, weight * values, 0.0).sum()
