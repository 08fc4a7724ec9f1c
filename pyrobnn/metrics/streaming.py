"""Calibration errors that take their data batch by batch, as torchmetrics objects.

Importing torchmetrics takes longer than importing torch, so :mod:`pyrobnn.metrics` loads this file when one of its
classes is first asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pyrobnn.core.explanations import explained
from pyrobnn.metrics.calibration import (
    ReliabilityCurve,
    bin_sums,
    check_num_bins,
    make_curve,
    mass_edges,
    top_confidence,
    width_edges,
)

__all__ = ["AdaptiveCalibrationError", "ExpectedCalibrationError"]


@explained
class ExpectedCalibrationError(Metric):
    """Streaming :func:`~pyrobnn.metrics.expected_calibration_error`; keeps ``3 M`` sums for any number of examples.

    Args:
        num_bins: Number of bins ``M``.

    Raises:
        ValueError: ``num_bins < 1``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    confidence_sum: Tensor
    correct_sum: Tensor
    count: Tensor

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = check_num_bins(num_bins)
        self.add_state("confidence_sum", torch.zeros(num_bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("correct_sum", torch.zeros(num_bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probs: Tensor, y: Tensor) -> None:
        """Add a batch: probabilities ``[..., C]`` (or binary, in the shape of ``y``) and labels ``[...]``."""
        confidence, correct = top_confidence(probs, y)
        edges = width_edges(self.num_bins, confidence)
        confidence_sum, correct_sum, count = bin_sums(confidence, correct, edges)
        self.confidence_sum = self.confidence_sum + confidence_sum
        self.correct_sum = self.correct_sum + correct_sum
        self.count = self.count + count

    def curve(self) -> ReliabilityCurve:
        """Reliability curve of all examples since the last reset (of this process only)."""
        edges = width_edges(self.num_bins, self.confidence_sum)
        return make_curve(edges, self.confidence_sum, self.correct_sum, self.count)

    def compute(self) -> Tensor:
        """Expected calibration error of all examples so far, 0-d."""
        return self.curve().ece


@explained
class AdaptiveCalibrationError(Metric):
    """Streaming :func:`~pyrobnn.metrics.adaptive_calibration_error`; keeps all confidences, for bins of equal mass.

    Args:
        num_bins: Number of bins.

    Raises:
        ValueError: ``num_bins < 1``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = check_num_bins(num_bins)
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def update(self, probs: Tensor, y: Tensor) -> None:
        """Add a batch: probabilities ``[..., C]`` (or binary, in the shape of ``y``) and labels ``[...]``."""
        confidence, correct = top_confidence(probs, y)
        self.confidence.append(confidence)
        self.correct.append(correct)

    def compute(self) -> Tensor:
        """Adaptive calibration error of all examples so far, 0-d."""
        confidence, correct = dim_zero_cat(self.confidence), dim_zero_cat(self.correct)
        edges = mass_edges(confidence, self.num_bins)
        return make_curve(edges, *bin_sums(confidence, correct, edges)).ece
