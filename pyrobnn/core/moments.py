r"""Mean and variance of rows that come in blocks, in one pass.

For a block of k rows with mean :math:`\bar x` and sum of squared deviations :math:`S`, after n rows with mean m and
sum M (Chan, Golub & LeVeque 1979; for k = 1 Welford 1962),

.. math::  \delta = \bar x - m, \qquad m \leftarrow m + \frac{k}{n + k}\, \delta, \qquad
           M \leftarrow M + S + \frac{n k}{n + k}\, \delta^2,

which, unlike the difference of the moments, does not cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RunningMoments", "add_rows"]


def add_rows(count: int, mean: Tensor, squares: Tensor, rows: Tensor) -> int:
    """Adds rows to the moments of those before, in place.

    Args:
        count: Number n of rows so far.
        mean: Their mean, overwritten.
        squares: Their sum of squared deviations from it, overwritten.
        rows: The rows ``[k, *shape of the mean]``, at least one.

    Returns:
        The number of rows now.
    """
    added = len(rows)
    total = count + added
    block_mean = rows[0] if added == 1 else rows.mean(0)
    shift = block_mean - mean
    mean.add_(shift, alpha=added / total)
    if added > 1:
        squares.add_((rows - block_mean).square_().sum(0))
    if count:
        squares.add_(shift.square_(), alpha=count * added / total)
    return total


class RunningMoments:
    """Mean and variance by element, of rows that come in blocks.

    Args:
        dtype: In which they are computed; None takes that of the rows.

    Attributes:
        count: Rows so far.
        mean: Their mean; a tensor without elements before the first.
        squares: Their sum of squared deviations from it.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self.count = 0
        self.mean = self.squares = torch.empty(0)

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Adds rows ``[k, ...]``; the first decide shape and device."""
        if not self.count:
            like = torch.zeros_like(rows[0], dtype=self.dtype)
            self.mean, self.squares = like, like.clone()
        self.count = add_rows(self.count, self.mean, self.squares, rows.to(self.mean))

    def variance(self, correction: int = 1) -> Tensor:
        """The sum of squared deviations by the number of rows minus ``correction``; 0 where that is not positive."""
        return self.squares / max(self.count - correction, 1)

    def std(self, correction: int = 1) -> Tensor:
        """The square root of :meth:`variance`."""
        return self.variance(correction).sqrt()
