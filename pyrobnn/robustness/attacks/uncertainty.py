r"""Attacks on the uncertainty of a posterior, as losses that any attack can raise.

With the mean :math:`\bar p` of the class probabilities under K draws,

* ``"entropy"`` is :math:`H(\bar p)`, all of the uncertainty;
* ``"expected_entropy"`` is :math:`\frac1K \sum_k H(p_k)`, that of the data;
* ``"mutual_information"`` is their difference, that of the weights;
* ``"variance"`` is :math:`\frac1K \sum_k \|p_k\|_2^2 - \|\bar p\|_2^2`, the model variance by which adversarial images
  are detected;
* ``"least_confidence"`` is :math:`1 - \max_c \bar p_c`.

Lowered on outliers, they are taken for known inputs; raised on known inputs, these are rejected. No labels are needed.

An attacker who knows that uncertain inputs are rejected wants wrong predictions that are certain: :class:`Evasion`
raises the margin up to a confidence, and lowers the uncertainty. A detector that is evaluated against attacks which do
not know it is evaluated too kindly (Carlini & Wagner, "Adversarial examples are not easily detected", 2017).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.losses import ClassLoss, NetworkRun, margins

__all__ = ["Evasion", "Uncertainty"]

_WITH_ANOTHER_MEAN = ("mutual_information", "expected_entropy", "variance")
"""Scores that need the mean over draws of something else than the probabilities."""

Score = Literal["mutual_information", "entropy", "expected_entropy", "variance", "least_confidence"]


@explained
class Uncertainty(ClassLoss):
    """A measure of uncertainty, raised or lowered.

    ::

        hidden = PGD(0.1, loss=Uncertainty("mutual_information", "lower"))(model, guide, outliers)

    Args:
        score: Which measure.
        direction: ``"raise"`` or ``"lower"``.

    Raises:
        ValueError: If an argument is none of its choices.
    """

    needs_targets = False

    def __init__(self, score: Score = "mutual_information", direction: Literal["raise", "lower"] = "raise") -> None:
        if not isinstance(score, str) or score not in get_args(Score):
            raise ValueError(f"score: expected one of {sorted(get_args(Score))}, got {score!r}.")
        if not isinstance(direction, str) or direction not in ("raise", "lower"):
            raise ValueError(f"direction: expected 'raise' or 'lower', got {direction!r}.")
        self.score, self.direction = score, direction

    def summary(self, run: NetworkRun) -> Tensor:
        """Log probabilities ``[N, ..., C]``, and as a further column the logarithm of what else is averaged."""
        logs = super().summary(run)
        probabilities = logs.exp()
        if self.score in ("mutual_information", "expected_entropy"):
            more = -(probabilities * logs.clamp_min(torch.finfo(logs.dtype).min)).sum(-1, keepdim=True)
        elif self.score == "variance":
            more = probabilities.square().sum(-1, keepdim=True)
        else:
            return logs
        return torch.cat([logs, more.clamp_min(torch.finfo(logs.dtype).tiny).log()], -1)

    def value(self, pooled: Tensor, targets: Tensor | None) -> Tensor:
        """The measure, or minus it; of several labels in an input, their mean."""
        found = self.measure(pooled).reshape(len(pooled), -1).mean(1)
        return found if self.direction == "raise" else -found

    def measure(self, pooled: Tensor) -> Tensor:
        """The measure ``[N, ...]``, given the logarithm of the mean of :meth:`summary`."""
        logs, more = self._log_probabilities(pooled), pooled[..., -1].exp()
        probabilities = logs.exp()
        if self.score == "expected_entropy":
            return more
        if self.score == "variance":
            return more - probabilities.square().sum(-1)
        if self.score == "least_confidence":
            return 1 - probabilities.amax(-1)
        entropy = -(probabilities * logs.clamp_min(torch.finfo(logs.dtype).min)).sum(-1)
        return entropy - more if self.score == "mutual_information" else entropy

    def _log_probabilities(self, pooled: Tensor) -> Tensor:
        return pooled[..., :-1] if self.score in _WITH_ANOTHER_MEAN else pooled

    def __repr__(self) -> str:
        return f"Uncertainty({self.score!r}, {self.direction!r})"


@explained
class Evasion(Uncertainty):
    """Wrong predictions that are certain: the margin, cut at a confidence, minus a multiple of the uncertainty.

    ::

        adaptive = PGD(0.3, loss=Evasion("variance", weight=10.0), steps=100)(model, guide, x, y)

    Args:
        score: The measure by which inputs are rejected.
        weight: Its weight beside the margin, which is in log odds.
        kappa: The margin beyond which only the uncertainty counts.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs_targets = True

    def __init__(self, score: Score = "mutual_information", weight: float = 1.0, kappa: float = 1.0) -> None:
        super().__init__(score, "lower")
        check_non_negative("weight", weight)
        check_non_negative("kappa", kappa)
        self.weight, self.kappa = weight, kappa

    def value(self, pooled: Tensor, targets: Tensor | None) -> Tensor:
        """The margin minus the weighted measure."""
        assert targets is not None
        margin = margins(self._log_probabilities(pooled), targets).clamp_max(self.kappa)
        return (margin - self.weight * self.measure(pooled)).reshape(len(pooled), -1).mean(1)

    def __repr__(self) -> str:
        return f"Evasion({self.score!r}, weight={self.weight:g}, kappa={self.kappa:g})"
