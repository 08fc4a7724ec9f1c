"""Scores of predictions of real-valued targets, of one prediction or of a model over a loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.explanations import explained
from pyrobnn.metrics.crps import crps
from pyrobnn.metrics.energy import energy_scores
from pyrobnn.metrics.intervals import LevelWeights
from pyrobnn.metrics.regression_report import RegressionReport
from pyrobnn.model.likelihoods.moment_prediction import NoCdfError
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.prediction.held_out import held_out_real
from pyrobnn.prediction.predict import predict_batches

if TYPE_CHECKING:
    from pyrobnn.metrics.streaming_regression import RegressionScores

__all__ = ["add_prediction", "regression_report", "regression_scores"]

_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@explained
def regression_scores(
    prediction: Prediction,
    targets: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    levels: Sequence[float] | Tensor = _LEVELS,
    level: float | None = None,
    level_weights: LevelWeights = "level",
    num_bins: int = 20,
    num_targets: int = 200,
) -> RegressionReport:
    """Scores of one prediction of real-valued targets or counts.

    Quantiles, probabilities and the CRPS are those of the posterior mixture, computed and not sampled. If the
    likelihood's distribution has no cdf they are taken from sampled targets, the CRPS without the bias of their number.

    Args:
        prediction: The prediction ``[N, …]``, with its draws kept.
        targets: Targets of its shape; None takes those that came with the loader. NaN was not observed, if the
            likelihood allows that; it enters no score.
        weight: Weights of the examples ``[N]``; scores are then weighted means.
        levels: Levels of central intervals.
        level: The one of them that ``picp``, ``mpiw`` and ``interval_score`` are of; None takes the last.
        level_weights: Weights of the levels in CWCE: ``"level"``, ``"uniform"``, or one for each ``[J]``.
        num_bins: Number of bins of the PIT.
        num_targets: Number of sampled targets of each input, where sampling is needed: of several targets of an input,
            for the energy score, and without a cdf.

    Returns:
        The scores.

    Raises:
        TypeError: If the prediction is none of real-valued targets.
        ValueError: If targets, weights or levels do not fit, or the draws were not kept.
    """
    scores = _empty(levels, level, level_weights, num_bins)
    add_prediction(scores, prediction, targets, weight, num_targets)
    return scores.report()


@explained
def regression_report(
    model: nn.Module,
    guide: Any,
    data: Iterable[Any],
    num_samples: int = 100,
    *,
    levels: Sequence[float] | Tensor = _LEVELS,
    level: float | None = None,
    level_weights: LevelWeights = "level",
    num_bins: int = 20,
    num_targets: int = 200,
    batch: Reader | None = None,
    **options: Any,
) -> RegressionReport:
    """Scores of a model on the data of a loader, batch by batch; memory stays that of one batch.

    They equal those of :func:`regression_scores` for one prediction of all data, but for targets that are sampled.

    Args:
        model: The model.
        guide: Its posterior, as for :func:`~pyrobnn.predict`.
        data: A loader of ``(x, y)`` or ``(x, y, weight)`` with a weight for each row.
        num_samples: Number K of posterior draws.
        levels: As for :func:`regression_scores`, like the next four.
        level: The level of ``picp``, ``mpiw`` and ``interval_score``.
        level_weights: Weights of the levels in CWCE.
        num_bins: Number of bins of the PIT.
        num_targets: Number of sampled targets of each input, where sampling is needed.
        batch: For loaders that yield something else, as for :func:`~pyrobnn.predict`.
        options: Further options of :func:`~pyrobnn.predict_batches`, such as ``seed``.

    Returns:
        The scores.

    Raises:
        TypeError, ValueError: As :func:`~pyrobnn.predict` and :func:`regression_scores`, or if the loader yields no
            targets.
    """
    scores = _empty(levels, level, level_weights, num_bins)
    if isinstance(data, Tensor | dict | str) or not isinstance(data, Iterable):
        raise TypeError(f"data: expected a loader of (x, y), got {type(data).__name__}.")
    weights: list[Tensor | None] = []

    def read(raw: Any) -> Batch:
        found = Batch.read(raw, reader=batch, argument="data")
        weights.append(found.weight)
        return found

    options = {"return_draws": True, **options}
    for index, (prediction, y) in enumerate(predict_batches(model, guide, data, num_samples, batch=read, **options)):
        add_prediction(scores, prediction, y, weights[index], num_targets)
    if not weights:
        raise ValueError("data: it holds no inputs.")
    return scores.report()


def _empty(levels: Any, level: float | None, level_weights: LevelWeights, num_bins: int) -> RegressionScores:
    from pyrobnn.metrics.streaming_regression import RegressionScores  # importing torchmetrics takes a second

    return RegressionScores(levels, level, level_weights=level_weights, num_bins=num_bins)


def add_prediction(
    scores: RegressionScores,
    given: Prediction,
    targets: Tensor | None,
    weight: Tensor | None,
    num_targets: int,
) -> None:
    """Adds a prediction, as for :func:`regression_scores`, to the scores of others."""
    check_positive_int("num_targets", num_targets)
    prediction, y = held_out_real(given, targets)
    observed = prediction.likelihood.observed_mask(y)
    at = y if observed is None else torch.where(observed, y, prediction.mean)
    draws = prediction.sample(max(2, num_targets)) if at[0].numel() > 1 else None
    found: dict[str, Tensor | None] = {"energy": None, "weight": None if weight is None else weight.to(at.device)}
    if draws is not None:
        found["energy"] = energy_scores(draws, at, fair=True, observed=observed)
    levels = torch.cat([(1.0 - scores.levels) / 2.0, (1.0 + scores.levels) / 2.0])
    try:
        ends = prediction.quantile(levels)
        found["below"], found["pit"] = prediction.pit(at)
        found["crps"] = prediction.crps(y)
    except NoCdfError:
        draws = prediction.sample(max(2, num_targets)) if draws is None else draws
        ends = draws.double().quantile(levels.to(draws.device), 0).to(draws.dtype)
        found["crps"] = crps(draws, at, reduction="none")
        found["below"], found["pit"] = _ranks(draws, at)
    lower, upper = ends.chunk(2)
    log_prob = prediction.log_prob(y)
    scores.to(at.device).update(prediction.mean, at, lower, upper, log_prob=log_prob, observed=observed, **found)


def _ranks(draws: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The PIT by the rank of the target among S draws, which is one of ``S + 1`` equally probable places."""
    count = len(draws) + 1
    return (draws < y).sum(0) / count, ((draws <= y).sum(0) + 1) / count
