"""All scores of a regression in one place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyrobnn.metrics.pit import PitHistogram, QuantileCalibration

__all__ = ["RegressionReport"]


@dataclass(frozen=True, eq=False)
class RegressionReport:
    """Scores of predictions of real-valued targets; means are over observed targets, weighted if examples are.

    Attributes:
        num_targets: Number of observed targets.
        rmse: Root mean squared error, in the target's units.
        r2: Coefficient of determination, averaged over the targets of an example; NaN if one of them is constant.
        nll: Minus the mean log density of an example's targets, jointly, in nats; None if it was not given.
        crps: Continuous ranked probability score, in the target's units; None if it was not given.
        energy: Energy score of an example's targets, jointly; None for one target.
        pinball: Mean pinball loss of the ends of all intervals; about half the CRPS for many levels.
        level: Level of the intervals that the next three judge.
        picp: Share of targets in them.
        mpiw: Their mean width, in the target's units.
        interval_score: Their mean interval score (Winkler's).
        levels: Levels of all intervals ``[J]``.
        coverage: Share of targets in each ``[J]``.
        width: Mean width of each ``[J]``.
        cwce: Coverage-weighted calibration error, in per cent.
        epiw: Mean width over all levels.
        r_cwce: ``(1 - r2) · cwce``, in per cent.
        pit: Histogram of the probability integral transform; None if it was not given.
        quantiles: Calibration of quantiles; None if the PIT was not given.
    """

    num_targets: int
    rmse: float
    r2: float
    nll: float | None
    crps: float | None
    energy: float | None
    pinball: float
    level: float
    picp: float
    mpiw: float
    interval_score: float
    levels: Tensor
    coverage: Tensor
    width: Tensor
    cwce: float
    epiw: float
    r_cwce: float
    pit: PitHistogram | None
    quantiles: QuantileCalibration | None

    def as_dict(self) -> dict[str, float]:
        """The scores that are single numbers, by name."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, int | float)}
        return {name: float(value) for name, value in named.items()}

    def __str__(self) -> str:
        return "\n".join(f"{name:<15} {value:.6g}" for name, value in self.as_dict().items())
