r"""Abstention: answer the certain inputs only, so that of the answers at most a stated share is wrong.

Of n held-out data in the order of their uncertainty u, let :math:`e_k` be the errors of the first k, and t the next
uncertainty. Given t, those k are independent draws of what is answered with the rule "u below t", so that
:math:`e_k` is binomial with the rule's risk. The rule of largest coverage is taken for which

.. math::  P(\mathrm{Bin}(k, r) \le e_k) \le \delta / m,

among m coverages that are stated before the data are seen. With probability :math:`1 - \delta` over the held-out data
the risk of the rule is below r (Bonferroni over the m).

The guarantee is that of Geifman and El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017, with a
grid in place of a binary search.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self, TypeAlias

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int, check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.prediction.held_out import check_classes, held_out_classes

__all__ = ["Abstention", "Score"]

Score: TypeAlias = Callable[[Prediction], Tensor]
"""The uncertainty ``[N, …]`` of a prediction, higher for what is answered later."""


@explained
class Abstention(Fitted):
    """Answers where the uncertainty is below a threshold, at which the error rate has a guarantee.

    ::

        rule = Abstention(risk=0.01).fit(held_out, labels)
        answered = rule(prediction)  # bool [N]

    Args:
        risk: The largest share r of wrong labels among the answers.
        confidence: The probability :math:`1 - \\delta` of the guarantee, over the choice of held-out data.
        score: The uncertainty of a prediction; None takes one minus the largest probability.
        num_coverages: How many coverages 1 / m, 2 / m, ..., 1 are tried.

    Attributes:
        threshold: Inputs of an uncertainty below it are answered; 0-d.
        coverage: The share of the held-out data that is; 0-d.

    Raises:
        TypeError: If ``score`` is no function.
        ValueError: If ``risk`` or ``confidence`` is not between 0 and 1, or ``num_coverages`` no positive int.
    """

    threshold: Tensor
    coverage: Tensor

    def __init__(
        self, risk: float = 0.05, confidence: float = 0.95, *, score: Score | None = None, num_coverages: int = 20
    ) -> None:
        super().__init__("threshold", "coverage")
        check_probability("risk", risk)
        check_probability("confidence", confidence)
        check_positive_int("num_coverages", num_coverages)
        if score is not None and not callable(score):
            raise TypeError(f"score: expected a function from a prediction to uncertainties, got {score!r}.")
        self.risk, self.confidence, self.num_coverages = risk, confidence, num_coverages
        self.score: Score = least_confidence if score is None else score

    @explained
    @torch.no_grad()
    def fit(self, prediction: Prediction, targets: Tensor | None = None) -> Self:
        """Finds the threshold of largest coverage from held-out data, which must not be training data.

        Args:
            prediction: Predicted class probabilities ``[N, …, C]``.
            targets: Labels ``[N, …]``; None takes those that came with the prediction's loader.

        Returns:
            The rule.

        Raises:
            TypeError: If ``prediction`` is no prediction of classes, or the score returns no tensor.
            ValueError: If labels or scores do not fit, or the risk cannot be promised at any coverage: the message says
                how many data without an error it would take, and the least risk that can be promised.
        """
        found, labels, mask = held_out_classes(prediction, targets)
        uncertainty = self._scores(found)[mask].double()
        wrong = (found.predicted[mask] != labels).double()
        order = uncertainty.argsort()
        ordered, errors = uncertainty[order], wrong[order].cumsum(0)
        num_data, level = len(ordered), (1.0 - self.confidence) / self.num_coverages
        best: tuple[float, int] | None = None
        least = 1.0
        for step in range(1, self.num_coverages + 1):
            rank = num_data * step // self.num_coverages
            threshold = math.inf if rank == num_data else float(ordered[rank])
            count = int((ordered < threshold).sum())  # fewer than the rank if there are ties
            if not count:
                continue
            found_errors = int(errors[count - 1])
            least = min(least, _upper_bound(found_errors, count, level))
            if _binomial_cdf(found_errors, count, self.risk) <= level:
                best = threshold, count
        if best is None:
            needed = math.ceil(math.log(level) / math.log1p(-self.risk))
            raise ValueError(
                f"risk: {self.risk:g} cannot be promised with confidence {self.confidence:g} from these {num_data} "
                f"data; the least that can is {least:.3g}. It takes at least {needed} answers without an error; take "
                "more held-out data, a larger risk or another score."
            )
        self.store(
            num_data,
            threshold=ordered.new_tensor(best[0]),
            coverage=ordered.new_tensor(best[1] / num_data),
        )
        return self

    @explained
    @torch.no_grad()
    def forward(self, prediction: Prediction) -> Tensor:
        """Which inputs are answered, bool ``[N, …]``.

        Raises:
            RuntimeError: If the rule is not fitted.
            TypeError: If ``prediction`` is no prediction of classes.
            ValueError: If scores do not fit.
        """
        self.check_fitted("fit")
        return self._scores(check_classes(prediction)).double() < self.threshold

    def extra_repr(self) -> str:
        """The risk, the confidence, and the number of held-out data."""
        return f"risk={self.risk:g}, confidence={self.confidence:g}, num_data={int(self.num_data)}"

    def _scores(self, prediction: Prediction) -> Tensor:
        found = self.score(prediction)
        if not isinstance(found, Tensor):
            raise TypeError(f"score: expected a tensor of uncertainties, got {type(found).__name__}.")
        if found.shape != prediction.target_shape:
            raise ValueError(
                f"score: expected shape {tuple(prediction.target_shape)}, one for each label, got {tuple(found.shape)}."
            )
        if bool(found.isnan().any()):
            raise ValueError("score: an uncertainty is NaN.")
        return found


def least_confidence(prediction: Prediction) -> Tensor:
    """One minus the largest probability."""
    return prediction.least_confidence


def _binomial_cdf(errors: int, count: int, risk: float) -> float:
    """The probability of at most so many errors of ``count`` at a rate of ``risk``."""
    from scipy.special import bdtr

    return float(bdtr(errors, count, risk))


def _upper_bound(errors: int, count: int, level: float) -> float:
    """The largest rate at which so few errors have probability ``level`` (Clopper and Pearson)."""
    from scipy.special import betaincinv

    return 1.0 if errors == count else float(betaincinv(errors + 1, count - errors, 1.0 - level))
