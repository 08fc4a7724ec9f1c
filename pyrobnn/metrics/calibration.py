"""Reliability curves and calibration errors of class probabilities.

Each example has a confidence, the probability of its most probable class (ties: lowest index), and is correct
or not. Grouped into ``M`` bins by confidence, with ``n_m`` of ``n`` examples in bin ``m``,

    ECE = sum_m (n_m / n) |accuracy_m - confidence_m|,    MCE = max_m |accuracy_m - confidence_m|

*Equal-width* bins are ``((m - 1)/M, m/M]``; *adaptive* (equal-mass) bins end at the ``ceil(m n / M)``-th
smallest confidence. Equal confidences always share a bin, so no result depends on the order of the data;
adaptive bins of tied confidences are then unequal and may be empty.

``probs`` is ``[..., C]``, with labels ``[...]``. **Binary** probabilities of the positive class, in the shape
of the labels, are read as ``[1 - p, p]``: the confidence is ``max(p, 1 - p)`` and accuracy is that of the
class predicted. (Forecast verification bins ``p`` itself against the frequency of the positive class, a
different number.)

``ExpectedCalibrationError`` and ``AdaptiveCalibrationError`` are the streaming versions. The class in
torchmetrics is not used for the former: it closes bins on the left and puts a confidence of exactly 1, common
in float32, into a bin of its own, and it keeps every confidence where ``M`` sums suffice.

ECE is biased upwards for few examples per bin, and both errors depend on ``M``: state it.

Sources: Naeini et al., AAAI 2015; Guo et al., "On calibration of modern neural networks", ICML 2017,
arXiv:1706.04599; equal-mass bins: Nguyen and O'Connor, EMNLP 2015, and Nixon et al., 2019, arXiv:1904.01685
(whose "ACE" averages over all classes; here only the top class counts).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float, check_labels, check_probs


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Accuracy against confidence in ``M`` bins.

    Attributes:
        bin_edges: Bin ``m`` is ``(bin_edges[m], bin_edges[m + 1]]``, ``[M + 1]``; the first one includes its
            left edge.
        confidence: Mean confidence in each bin, ``[M]``; NaN in an empty bin.
        accuracy: Share of correct examples in each bin, ``[M]``; NaN in an empty bin.
        count: Number of examples in each bin, ``[M]``, ``int64``.
    """

    bin_edges: Tensor
    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    @property
    def ece(self) -> Tensor:
        """Expected calibration error, 0-d in ``[0, 1]``."""
        return (self._gap * self.count).sum() / self.count.sum()

    @property
    def mce(self) -> Tensor:
        """Maximum calibration error over the bins that are not empty, 0-d in ``[0, 1]``."""
        return self._gap.max()

    @property
    def _gap(self) -> Tensor:
        return torch.where(self.count > 0, (self.accuracy - self.confidence).abs(), 0.0)


@explained
def reliability_curve(probs: Tensor, y: Tensor, num_bins: int = 15, adaptive: bool = False) -> ReliabilityCurve:
    """Reliability curve of the top-class confidence.

    Args:
        probs: Class probabilities ``[..., C]``, or binary ones in the shape of ``y``.
        y: Labels ``[...]``.
        num_bins: Number of bins ``M``; 15 is usual for errors, 10 for plots.
        adaptive: Equal-mass instead of equal-width bins.

    Returns:
        The curve, on the device of ``probs``.

    Raises:
        TypeError: Wrong dtypes.
        ValueError: Not probabilities, shapes that do not fit, labels outside the classes, ``num_bins < 1``.
    """
    check_num_bins(num_bins)
    confidence, correct = top_confidence(probs, y)
    edges = mass_edges(confidence, num_bins) if adaptive else width_edges(num_bins, confidence)
    return make_curve(edges, *bin_sums(confidence, correct, edges))


@explained
def expected_calibration_error(probs: Tensor, y: Tensor, num_bins: int = 15) -> Tensor:
    """Expected calibration error with equal-width bins.

    Args:
        probs: Class probabilities ``[..., C]``, or binary ones in the shape of ``y``.
        y: Labels ``[...]``.
        num_bins: Number of bins.

    Returns:
        0-d in ``[0, 1]``.

    Raises:
        TypeError: Wrong dtypes.
        ValueError: See :func:`reliability_curve`.
    """
    return reliability_curve(probs, y, num_bins).ece


@explained
def adaptive_calibration_error(probs: Tensor, y: Tensor, num_bins: int = 15) -> Tensor:
    """Calibration error of the top class with equal-mass bins.

    Args:
        probs: Class probabilities ``[..., C]``, or binary ones in the shape of ``y``.
        y: Labels ``[...]``.
        num_bins: Number of bins.

    Returns:
        0-d in ``[0, 1]``.

    Raises:
        TypeError: Wrong dtypes.
        ValueError: See :func:`reliability_curve`.
    """
    return reliability_curve(probs, y, num_bins, adaptive=True).ece


def top_confidence(probs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Top-class confidence and whether that class is right, each ``[n]``."""
    if isinstance(probs, Tensor) and isinstance(y, Tensor) and probs.shape == y.shape:
        p = check_float(probs, "probs", finite=True)
        low, high = p.detach().aminmax()
        if low < 0 or high > 1:
            raise ValueError(
                f"probs: expected binary probabilities in [0, 1], got values from {low.item():.4g} to "
                f"{high.item():.4g}. Apply sigmoid to logits."
            )
        probs = torch.stack([1 - p, p], -1)
    probs = check_probs(probs).detach()
    y = check_labels(y, probs.shape[:-1], probs.shape[-1])
    confidence, predicted = probs.reshape(-1, probs.shape[-1]).max(-1)
    return confidence, predicted == y.flatten()


def width_edges(num_bins: int, like: Tensor) -> Tensor:
    """Edges of bins of equal width on [0, 1]."""
    # m / M is the float nearest to it, so a confidence of 0.6 lies on the edge 9/15; linspace may miss it.
    return torch.arange(num_bins + 1, dtype=like.dtype, device=like.device) / num_bins


def mass_edges(confidence: Tensor, num_bins: int) -> Tensor:
    """Edges of bins that hold equally many confidences."""
    ordered = confidence.sort().values
    ends = [-(-m * len(ordered) // num_bins) - 1 for m in range(1, num_bins + 1)]  # ceil(m n / M), from zero
    return ordered[[0, *ends]]


def bin_sums(confidence: Tensor, correct: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of confidences, number correct and number of examples per bin, each ``[M]``; sums in 64 bits."""
    num_bins = len(edges) - 1
    # Rounding may lift a confidence above 1, and the smallest may equal the first edge: keep both.
    index = (torch.bucketize(confidence, edges) - 1).clamp(0, num_bins - 1)

    def total(values: Tensor) -> Tensor:  # not bincount, which has no deterministic form on CUDA
        return values.new_zeros(num_bins).index_add(0, index, values)

    return total(confidence.double()), total(correct.double()), total(torch.ones_like(index))


def make_curve(edges: Tensor, confidence_sum: Tensor, correct_sum: Tensor, count: Tensor) -> ReliabilityCurve:
    """The curve of per-bin sums."""
    return ReliabilityCurve(edges, confidence_sum / count, correct_sum / count, count)  # 0 / 0 is NaN: empty


def check_num_bins(num_bins: int) -> int:
    """``num_bins``, if it is a positive int."""
    check_positive_int("num_bins", num_bins)
    return num_bins
