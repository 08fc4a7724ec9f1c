"""What conformal predictors share: scores of calibration data, and the thresholds that are taken from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrobnn.conformal.order_statistics import threshold, weighted_threshold
from pyrobnn.core.arguments import check_probability
from pyrobnn.core.fitted import Fitted

__all__ = ["ConformalPredictor"]


class ConformalPredictor(Fitted):
    """Base class. It keeps the calibration scores, so that a state dict restores it.

    Args:
        confidence_level: The share 1 - α of new data that sets are to cover.

    Attributes:
        scores: Calibration scores ``[n, ...]``.
        groups: The group of each calibration datum ``[n]``; no elements without groups.
        weights: The density ratio of each ``[n]``; no elements without weights.

    Raises:
        ValueError: If ``confidence_level`` is not between 0 and 1.
    """

    scores: Tensor
    groups: Tensor
    weights: Tensor

    def __init__(self, confidence_level: float) -> None:
        super().__init__("scores", "groups", "weights")
        check_probability("confidence_level", confidence_level)
        self.confidence_level = confidence_level

    def extra_repr(self) -> str:
        """The level, and the number of calibration data."""
        return f"confidence_level={self.confidence_level:g}, num_data={int(self.num_data)}"

    def keep(self, scores: Tensor, groups: Tensor | None, weights: Tensor | None) -> None:
        """Stores the scores of calibration data with what goes with each.

        Raises:
            ValueError: If scores are NaN, both groups and weights are given, or one of them does not fit.
        """
        if bool(scores.isnan().any()):
            raise ValueError("prediction: scores of the calibration data are NaN.")
        if groups is not None and weights is not None:
            raise ValueError("weights: thresholds by group and weights are not combined; pass one of them.")
        self.store(
            len(scores),
            scores=scores,
            groups=scores.new_empty(0) if groups is None else check_groups(groups, len(scores)).to(scores.device),
            weights=scores.new_empty(0) if weights is None else check_weights(weights, len(scores)).to(scores.device),
        )

    def thresholds(self, num_inputs: int, groups: Tensor | None, weights: Tensor | None) -> Tensor:
        """The threshold of each of N inputs, ``[N, ...]``.

        Raises:
            RuntimeError: If the predictor was not conformalized.
            ValueError: If groups or weights were given to one of calibration and prediction only, or do not fit.
        """
        self.check_fitted("conformalize")
        for name, given in (("groups", groups), ("weights", weights)):
            kept = bool(len(getattr(self, name)))
            if kept != (given is not None):
                raise ValueError(
                    f"{name}: they were {'given' if kept else 'not given'} to conformalize, so pass "
                    f"{'those of the inputs, too' if kept else 'none'}."
                )
        if weights is not None:
            new = check_weights(weights, num_inputs).to(self.scores.device)
            columns = self.scores.flatten(1).T if self.scores.dim() > 1 else self.scores.unsqueeze(0)
            rows = [weighted_threshold(column, self.weights, new, self.confidence_level) for column in columns]
            return torch.stack(rows, 1).reshape(num_inputs, *self.scores.shape[1:])
        if groups is None:
            return threshold(self.scores, self.confidence_level).expand(num_inputs, *self.scores.shape[1:])
        asked = check_groups(groups, num_inputs).to(self.scores.device)
        found = self.scores.new_full((num_inputs, *self.scores.shape[1:]), math.inf)
        for group in asked.unique().tolist():
            members = self.scores[self.groups == group]
            found[asked == group] = threshold(members, self.confidence_level, f" of group {group}")
        return found


def check_groups(groups: Tensor, num_rows: int) -> Tensor:
    """Refuses what is no integer for each row.

    Raises:
        TypeError: If it is no tensor of integers.
        ValueError: If there is not one for each row.
    """
    if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.is_complex():
        kind = groups.dtype if isinstance(groups, Tensor) else type(groups).__name__
        raise TypeError(f"groups: expected a tensor of integers, got {kind}.")
    if groups.shape != (num_rows,):
        raise ValueError(f"groups: expected shape ({num_rows},), one for each row, got {tuple(groups.shape)}.")
    return groups.long()


def check_weights(weights: Tensor, num_rows: int) -> Tensor:
    """Refuses what is no finite weight of at least 0 for each row, not all 0.

    Raises:
        TypeError: If it is no tensor of real numbers.
        ValueError: If there is not one for each row, or one is negative or not finite.
    """
    if not isinstance(weights, Tensor) or weights.is_complex():
        raise TypeError(f"weights: expected a tensor of density ratios, got {type(weights).__name__}.")
    if weights.shape != (num_rows,):
        raise ValueError(f"weights: expected shape ({num_rows},), one for each row, got {tuple(weights.shape)}.")
    if not bool(((weights >= 0) & weights.isfinite()).all()) or not bool((weights > 0).any()):
        raise ValueError("weights: expected finite numbers of at least 0, not all 0.")
    return weights.double()
