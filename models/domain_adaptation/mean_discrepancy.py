r"""DDC: the maximum mean discrepancy of both domains' features should be small.

.. math::  \mathrm{MMD}^2 = E\, k(f_s, f_s') + E\, k(f_t, f_t') - 2 E\, k(f_s, f_t), \qquad
           k(f, g) = \frac1J \sum_j \exp\Bigl(-\frac{\|f - g\|^2}{2 b_j^2}\Bigr),

estimated without bias: pairs of a row with itself are left out, so that it may be negative. Bandwidths are multiples of
the root of the median squared distance in the batch, which no gradient goes through. Tzeng, Hoffman, Zhang, Saenko &
Darrell, *Deep Domain Confusion* (2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.domain_adaptation.batches import AlignmentLoss, DomainBatch
from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_positive

__all__ = ["MeanDiscrepancy", "maximum_mean_discrepancy"]


class MeanDiscrepancy(AlignmentLoss):
    """The squared maximum mean discrepancy of the features.

    Args:
        weight: Factor, or its schedule; 0.25 is the paper's.
        scales: Bandwidths as multiples of the median distance.

    Raises:
        ValueError: If ``weight`` is negative, or a scale not positive.
    """

    name = "mean_discrepancy"

    def __init__(self, weight: schedules.Schedule = 0.25, *, scales: Sequence[float] = (0.5, 1.0, 2.0)) -> None:
        super().__init__(weight)
        for scale in scales:
            check_positive("scales", scale)
        self.scales = tuple(scales)

    def __call__(self, batch: DomainBatch, weight: float) -> Tensor:
        """The estimate times its weight."""
        source, target = batch.source.features, batch.target.features
        with torch.no_grad():
            distances = torch.pdist(torch.cat([source, target])).square()
            middle = float(distances.median().sqrt().clamp(min=1e-6))
        return weight * maximum_mean_discrepancy(source, target, [scale * middle for scale in self.scales])


def maximum_mean_discrepancy(first: Tensor, second: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """The unbiased estimate of MMD² with an average of Gaussian kernels.

    Args:
        first: Samples ``[N, F]``, at least two.
        second: Samples ``[M, F]``, at least two.
        bandwidths: The kernels' bandwidths b, in the samples' units.

    Raises:
        ValueError: If there are fewer than two samples on a side.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"MMD: expected at least two rows of each domain, got {len(first)} and {len(second)}.")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a.square().sum(1).unsqueeze(1) + b.square().sum(1) - 2.0 * a @ b.mT).clamp(min=0.0)
        return torch.stack([(squares / (-2.0 * width**2)).exp() for width in bandwidths]).mean(0)

    def within(a: Tensor) -> Tensor:
        found = kernel(a, a)
        return (found.sum() - found.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(first) + within(second) - 2.0 * kernel(first, second).mean()
