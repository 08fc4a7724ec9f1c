"""Isotonic calibration: for each class the rising curve of least squared error to what was observed.

Curves are found by scikit-learn (pool adjacent violators), linear between their knots and constant outside of them. A
curve may be exactly 0 or 1, and a label of probability 0 has an infinite negative log likelihood.

Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.calibration.one_vs_rest import OneVsRest

__all__ = ["IsotonicCalibration"]


class IsotonicCalibration(OneVsRest):
    """A rising curve for each class, then normalized; classes must all occur in the calibration data.

    Needs some thousand data: with few the curves have few steps. It is of the averaged probabilities.
    """

    def curve(self, probs: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """By pool adjacent violators."""
        from sklearn.isotonic import IsotonicRegression

        found = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(
            probs.cpu().numpy(), hits.cpu().numpy()
        )
        return torch.as_tensor(found.X_thresholds_).to(probs), torch.as_tensor(found.y_thresholds_).to(probs)

    def evaluated(self, probs: Tensor, knots: Tensor, values: Tensor) -> Tensor:
        """Linear between knots."""
        return interpolated(probs, knots, values)


def interpolated(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """The broken line through ascending knots, constant outside; equal knots are a jump."""
    right = torch.searchsorted(knots.contiguous(), x.contiguous()).clamp(1, max(len(knots) - 1, 1))
    if len(knots) == 1:
        return values[0].expand(x.shape)
    left = right - 1
    width = knots[right] - knots[left]
    share = torch.where(width > 0, (x - knots[left]) / width.clamp_min(1e-300), 1.0).clamp(0.0, 1.0)
    return values[left] + share * (values[right] - values[left])
