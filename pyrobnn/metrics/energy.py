r"""Energy score of several targets at once, from draws.

.. math::  \mathrm{ES}(F, y) = E\|X - y\| - \tfrac12 E\|X - X'\|, \quad X, X' \sim F,

with the Euclidean norm over the targets of an example, so that they should be of similar scale. It is proper and, for
one target, the CRPS. It sees dependence between targets, but weakly (Gneiting and Raftery 2007).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import Reduction, check_float, check_same_shape, reduced

__all__ = ["energy_score", "energy_scores"]

_MAX_PAIRS = 2**22


@explained
def energy_score(
    draws: Tensor, y: Tensor, *, fair: bool = True, reduction: Reduction = "mean", weight: Tensor | None = None
) -> Tensor:
    """The score of draws of the targets, observation noise included.

    Args:
        draws: Predictive draws ``[S, N, ...]``, each of all targets jointly; ``S >= 2`` if ``fair``. Time is
            ``O(S²)``.
        y: Targets ``[N, ...]``; all dimensions but the first are the targets of an example.
        fair: Pairs of distinct draws only, which makes the score an unbiased estimate of that of the distribution; as
            in :func:`~pyrobnn.metrics.crps`.
        reduction: ``"mean"``, or ``"none"`` for the score of each example.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or ``[N]``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes that do not fit, values that are not finite, one draw with ``fair``, or wrong weights.
    """
    draws = check_float(draws, "draws", finite=True)
    y = check_float(y, "y", finite=True)
    if draws.ndim < 2:
        raise ValueError(f"draws: expected shape [S, N, ...] (draws first), got {list(draws.shape)}.")
    check_same_shape(y, "y", draws.shape[1:], "draws [S, N, ...]")
    if fair and len(draws) < 2:
        raise ValueError("draws: the fair score needs at least 2 draws, got 1. Draw more, or pass fair=False.")
    return reduced(energy_scores(draws, y, fair=fair), reduction, weight)


def energy_scores(draws: Tensor, y: Tensor, *, fair: bool, observed: Tensor | None = None) -> Tensor:
    """Scores ``[N]``, unchecked.

    Args:
        draws: ``[S, N, ...]``.
        y: ``[N, ...]``.
        fair: As for :func:`energy_score`.
        observed: Mask of the targets ``[N, ...]`` that count; None: all.
    """
    count, rows = draws.shape[:2]
    offset = (draws - y).reshape(count, rows, -1).movedim(0, 1)  # differences of draws are those of these offsets
    if observed is not None:
        offset = offset.masked_fill(~observed.reshape(rows, 1, -1), 0.0)
    distance = offset.norm(dim=-1).mean(1)
    pairs = count * (count - 1) if fair else count**2
    parts = [
        torch.cdist(part, part, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2))
        for part in offset.split(max(1, _MAX_PAIRS // count**2))
    ]
    return distance - torch.cat(parts) / (2 * pairs)
