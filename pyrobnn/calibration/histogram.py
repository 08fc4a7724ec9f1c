"""Histogram binning: for each class the share of its labels in bins of its probability.

Bins are ``((m - 1)/M, m/M]``, the first one closed, or hold equally many data. A bin without data has the share of its
middle, as if it were calibrated. Probabilities of 0 occur, with infinite negative log likelihoods.

Zadrozny and Elkan, "Obtaining calibrated probability estimates from decision trees and naive Bayesian classifiers",
ICML 2001.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.calibration.one_vs_rest import OneVsRest
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.metrics.calibration import mass_edges, width_edges

__all__ = ["HistogramBinning"]


@explained
class HistogramBinning(OneVsRest):
    """A step for each bin and class, then normalized; classes must all occur in the calibration data.

    It is of the averaged probabilities.

    Args:
        num_bins: Number of bins M.
        adaptive: Bins that hold equally many data in place of bins of equal width.

    Raises:
        ValueError: If ``num_bins`` is no positive int.
    """

    def __init__(self, num_bins: int = 15, *, adaptive: bool = False) -> None:
        super().__init__()
        check_positive_int("num_bins", num_bins)
        self.num_bins, self.adaptive = num_bins, bool(adaptive)

    def curve(self, probs: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """Inner edges of the bins, with a last one above all, and the share in each."""
        edges = mass_edges(probs, self.num_bins) if self.adaptive else width_edges(self.num_bins, probs)
        index = torch.bucketize(probs.contiguous(), edges[1:-1].contiguous())
        count, sums = (edges.new_zeros(self.num_bins).index_add(0, index, v) for v in (torch.ones_like(hits), hits))
        middle = (edges[1:] + edges[:-1]) / 2
        upper = torch.cat([edges[1:-1], edges.new_full((1,), torch.inf)])
        return upper, torch.where(count > 0, sums / count.clamp_min(1.0), middle)

    def evaluated(self, probs: Tensor, knots: Tensor, values: Tensor) -> Tensor:
        """The share of the bin."""
        return values[torch.searchsorted(knots.contiguous(), probs.contiguous())]
