"""Bootstrap intervals of how well a score separates in-distribution from out-of-distribution inputs.

Inputs of both kinds are drawn again with replacement, each kind by itself. A resample is a vector of counts over the
scores that occur, so all resamples are computed at once from cumulative sums, without sorting them again. Two scores of
the same inputs have the same resamples if the seed is the same, which pairs their errors.

Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_int, check_positive_int, check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float

__all__ = ["detection_intervals"]

_CHUNK = 2**21  # counts that are held at once


@explained
def detection_intervals(
    in_distribution: Tensor,
    out_of_distribution: Tensor,
    *,
    num_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the measures of :func:`~pyrobnn.metrics.detection_report`, over the choice of inputs.

    Args:
        in_distribution: Scores of in-distribution inputs ``[N]``, higher = more abnormal.
        out_of_distribution: Scores of out-of-distribution inputs ``[M]``.
        num_resamples: Number of resamples.
        level: Probability of the interval.
        seed: Fixes the resamples; torch's random state is left alone.

    Returns:
        ``(low, high)`` by name: ``auroc``, ``aupr_out``, ``aupr_in``, ``fpr95_out`` and ``fpr95_in``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Not one-dimensional, empty, or NaN, or an option is out of its range.
    """
    check_positive_int("num_resamples", num_resamples)
    check_probability("level", level)
    check_int("seed", seed, 0)
    known = check_float(in_distribution, "in_distribution", finite=False, ndim=1).detach().cpu()
    unknown = check_float(out_of_distribution, "out_of_distribution", finite=False, ndim=1).detach().cpu()
    values, rank = torch.unique(torch.cat([known, unknown]), return_inverse=True)
    sides = (rank[: len(known)], rank[len(known) :])
    generator = torch.Generator().manual_seed(seed)
    step = max(1, _CHUNK // (len(known) + len(unknown)))
    found: dict[str, list[Tensor]] = {}
    for start in range(0, num_resamples, step):
        count = min(step, num_resamples - start)
        counts = [_counts(side, len(values), count, generator) for side in sides]
        for name, value in weighted_measures(*counts).items():
            found.setdefault(name, []).append(value)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends = {name: torch.cat(value).quantile(tails).tolist() for name, value in found.items()}
    return {name: (low, high) for name, (low, high) in ends.items()}


def weighted_measures(known: Tensor, unknown: Tensor) -> dict[str, Tensor]:
    """The measures ``[R]`` of R weighted sets of inputs.

    Args:
        known: Weights of the in-distribution inputs at each value of the score, in increasing order, ``[R, U]``.
        unknown: Those of the others.
    """
    below = known.cumsum(1) - known
    auroc = (unknown * (below + 0.5 * known)).sum(1) / (known.sum(1) * unknown.sum(1))
    found = {"auroc": auroc}
    for suffix, positive, negative in (
        ("out", unknown.flip(1), known.flip(1)),  # thresholds from the most abnormal on
        ("in", known, unknown),
    ):
        hits, alarms = positive.cumsum(1), negative.cumsum(1)
        precision = hits / (hits + alarms).clamp_min(1.0)
        found[f"aupr_{suffix}"] = (positive * precision).sum(1) / hits[:, -1]
        reached = (hits >= 0.95 * hits[:, -1:]).byte().argmax(1, keepdim=True)
        found[f"fpr95_{suffix}"] = alarms.gather(1, reached).squeeze(1) / alarms[:, -1]
    order = ("auroc", "aupr_out", "aupr_in", "fpr95_out", "fpr95_in")
    return {name: found[name] for name in order}


def _counts(rank: Tensor, num_values: int, num_resamples: int, generator: torch.Generator) -> Tensor:
    """How often each value of the score is in each resample, ``[R, U]``."""
    chosen = rank[torch.randint(len(rank), (num_resamples, len(rank)), generator=generator)]
    counts = torch.zeros(num_resamples, num_values, dtype=torch.float64)
    return counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
