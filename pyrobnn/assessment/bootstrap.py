r"""Intervals of scores by the bootstrap.

The inputs are drawn with replacement, as many as there are, and the scores are computed anew: 2.5 % and 97.5 % of what
comes out are the ends of the interval. All labels of an input stay together. A resample is given as how often it holds
each input, of which scores are weighted sums, so that no input is looked at again.

Efron and Tibshirani, "An introduction to the bootstrap", 1993 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Score", "auroc_of_counts", "bootstrap"]


@dataclass(frozen=True)
class Score:
    """A score and the 95 % interval of it.

    Attributes:
        value: The score of the data.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def bootstrap(
    scores: Callable[..., dict[str, float]], sizes: Sequence[int], num_resamples: int, seed: int
) -> dict[str, Score]:
    """Scores with their intervals.

    Args:
        scores: From how often each input counts, one vector ``[n]`` of counts for each group of inputs, to the scores
            by name.
        sizes: Number of inputs of each group; groups are drawn independently.
        num_resamples: Number of resamples.
        seed: Seeds them; torch's own random state is not used.
    """
    generator = torch.Generator().manual_seed(seed)
    values = scores(*(torch.ones(size, dtype=torch.float64) for size in sizes))
    drawn = []
    for _ in range(num_resamples):
        counts = [torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n).double() for n in sizes]
        drawn.append(list(scores(*counts).values()))
    table = torch.tensor(drawn, dtype=torch.float64)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    found = {}
    for column, (name, value) in enumerate(values.items()):
        kept = table[:, column][table[:, column].isfinite()]  # an R² of equal targets is not defined
        low, high = torch.quantile(kept, ends).tolist() if len(kept) else (value, value)
        found[name] = Score(value, low, high)
    return found


def auroc_of_counts(inside: Tensor, outside: Tensor) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """:func:`pyrobnn.metrics.auroc` of scores ``[N]`` and ``[M]`` by how often each of them counts."""
    ranks = torch.unique(torch.cat([inside, outside]), return_inverse=True)[1]
    first, second = ranks[: len(inside)], ranks[len(inside) :]
    size = int(ranks.max()) + 1

    def scores(inner: Tensor, outer: Tensor) -> dict[str, float]:
        negative = torch.bincount(first, inner, minlength=size)
        positive = torch.bincount(second, outer, minlength=size)
        below = negative.cumsum(0) - negative / 2
        return {"auroc": float((positive * below).sum() / (negative.sum() * positive.sum()))}

    return scores
