r"""Conformal risk control: a threshold at which the expected loss of a new datum is at most a stated risk.

For a loss :math:`L_i(\lambda) \in [0, B]` that never rises with λ,

.. math::  \hat\lambda = \min \Big\{ \lambda : \frac{1}{n + 1} \Big(\sum_i L_i(\lambda) + B\Big) \le \alpha \Big\}
           \quad \Rightarrow \quad E[L_{n+1}(\hat\lambda)] \le \alpha

for exchangeable data. With the loss "not covered" it is split conformal prediction.

Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal risk control", ICLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self, TypeAlias

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.model.likelihoods.predictions import Prediction

__all__ = ["RiskControl", "ThresholdLoss", "missed_labels"]

ThresholdLoss: TypeAlias = Callable[[Prediction, Tensor, float], Tensor]
"""``(prediction, targets, threshold) -> losses [N]`` that never rise with the threshold."""

_ROUNDING = 1e-9


def missed_labels(prediction: Prediction, targets: Tensor, threshold: float) -> Tensor:
    r"""The share of an input's positive labels whose probability is below :math:`1 - \lambda`, ``[N]``.

    One minus the recall of each input; 0 where it has no positive label. For multi-label and segmentation.

    Args:
        prediction: Of binary labels, probabilities ``[N, ..., 2]``.
        targets: Labels 0 and 1 ``[N, ...]``.
        threshold: The threshold λ.

    Raises:
        ValueError: If labels are not binary, or their shape does not fit.
    """
    if prediction.mean.dim() < 2 or prediction.mean.shape[-1] != 2 or targets.shape != prediction.mean.shape[:-1]:
        raise ValueError(
            f"targets: expected binary labels for probabilities [N, ..., 2], got {tuple(targets.shape)} for "
            f"{tuple(prediction.mean.shape)}."
        )
    positive = (targets > 0.5).reshape(len(targets), -1)
    missed = positive & (prediction.mean[..., 1] < 1.0 - threshold).reshape(len(targets), -1)
    return missed.sum(1).double() / positive.sum(1).clamp_min(1)


@explained
class RiskControl(Fitted):
    """Finds the threshold of a decision from held-out data.

    ::

        control = RiskControl(missed_labels, risk=0.1).conformalize(held_out, labels)
        found = prediction.mean[..., 1] >= 1 - control.threshold

    Args:
        loss: Losses ``[N]`` at a threshold, ``(prediction, targets, threshold)``, which never rise with it.
        risk: The largest expected loss.
        bound: The largest loss B.
        thresholds: Ascending thresholds to choose from; None takes 1,001 from 0 to 1.

    Attributes:
        value: The threshold that was found, as a tensor.

    Raises:
        TypeError: If ``loss`` is no function.
        ValueError: If ``risk`` is not between 0 and ``bound``, ``bound`` not positive, or ``thresholds`` do not ascend.
    """

    value: Tensor

    def __init__(
        self,
        loss: ThresholdLoss,
        risk: float = 0.1,
        *,
        bound: float = 1.0,
        thresholds: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__("value")
        if not callable(loss):
            raise TypeError(f"loss: expected a function (prediction, targets, threshold), got {loss!r}.")
        check_positive("bound", bound)
        check_positive("risk", risk)
        if risk >= bound:
            raise ValueError(
                f"risk: expected less than the largest loss, {bound:g}, which any threshold has; got {risk:g}."
            )
        grid = torch.linspace(0, 1, 1001).double() if thresholds is None else torch.as_tensor(thresholds).double()
        if grid.dim() != 1 or not len(grid) or not bool(grid.isfinite().all()) or bool((grid.diff() <= 0).any()):
            raise ValueError("thresholds: expected finite numbers in ascending order.")
        self.loss, self.risk, self.bound, self._grid = loss, risk, bound, grid

    @property
    def threshold(self) -> float:
        """The threshold that was found.

        Raises:
            RuntimeError: If there is none yet.
        """
        self.check_fitted("conformalize")
        return float(self.value)

    @explained
    @torch.no_grad()
    def conformalize(self, prediction: Prediction, targets: Tensor | None = None) -> Self:
        """Finds the threshold by bisection.

        Args:
            prediction: The prediction of held-out data, which must not be training data.
            targets: Their targets; None takes those that came with the prediction's loader.

        Returns:
            The same object.

        Raises:
            TypeError: If the prediction is none, or the loss returns no tensor.
            ValueError: If no threshold has the risk: the message says the least risk that can be promised; if losses
                are outside 0 to ``bound``, rise with the threshold, or are not one for each datum.
        """
        if not isinstance(prediction, Prediction):
            raise TypeError(f"prediction: expected what predict returns, got {type(prediction).__name__}.")
        targets = prediction.targets if targets is None else targets
        if targets is None:
            raise ValueError("targets: the prediction came without any; pass them, or predict from a loader of (x, y).")
        num_data = len(prediction)
        if not num_data:
            raise ValueError("prediction: it holds no inputs.")

        def promised(index: int) -> float:
            found = self._losses(prediction, targets, float(self._grid[index]))
            return (float(found.sum()) + self.bound) / (num_data + 1)

        low, high = -1, len(self._grid) - 1  # the first is too risky, the second is not
        first, last = promised(0), promised(high)
        if last > first * (1 + _ROUNDING):
            raise ValueError("loss: it rises with the threshold; the guarantee needs one that never does.")
        if last > self.risk * (1 + _ROUNDING):
            needed = math.ceil(self.bound / self.risk - 1 - _ROUNDING)
            raise ValueError(
                f"risk: {self.risk:g} cannot be promised from these {num_data} data; the least that can is {last:.4g} "
                f"(no loss at all would take {needed} data). Take more data, other thresholds or a larger risk."
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if promised(middle) <= self.risk * (1 + _ROUNDING) else (middle, high)
        self.store(num_data, value=self._grid[high].to(prediction.mean.device))
        return self

    def extra_repr(self) -> str:
        """The risk, and the number of held-out data."""
        return f"risk={self.risk:g}, num_data={int(self.num_data)}"

    def _losses(self, prediction: Prediction, targets: Tensor, threshold: float) -> Tensor:
        found = self.loss(prediction, targets, threshold)
        if not isinstance(found, Tensor):
            raise TypeError(f"loss: expected a tensor of losses [N], got {type(found).__name__}.")
        if found.shape != (len(prediction),):
            raise ValueError(
                f"loss: expected shape ({len(prediction)},), one for each datum, got {tuple(found.shape)}."
            )
        found = found.double()
        if not bool(((found >= 0) & (found <= self.bound * (1 + _ROUNDING))).all()):
            raise ValueError(
                f"loss: expected losses from 0 to bound={self.bound:g}, got {found.min():g} to {found.max():g}."
            )
        return found
