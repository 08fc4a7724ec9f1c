"""Selective prediction: answer the certain examples, abstain on the rest.

Sort ``N`` examples by uncertainty and answer the ``k`` most certain. Then

    coverage_k = k / N,    risk_k = mean error of the k answered,    k = 1 .. N

    AURC   = mean_k risk_k                      (area under the risk-coverage curve)
    E-AURC = AURC - AURC of the best ordering   (what a perfect uncertainty would save; >= 0)
    AUGRC  = area under coverage_k * risk_k     (by trapezoids from coverage 0, where it is 0)

The best ordering sorts by the error itself, so E-AURC judges the uncertainty and not the predictor. It is
computed exactly, not by the large-``N`` approximation ``r + (1 - r) log(1 - r)`` of error rate ``r``.

``coverage_k * risk_k`` is the generalized risk: the share of all examples that are answered and wrong. AUGRC is the
mean of it over all coverages. Unlike AURC it does not weigh errors at high confidence beyond all others; for zero-one
errors of rate ``r`` it is ``r (1 - r) (1 - AUROC) + r^2 / 2``, AUROC being that of errors against right answers.

**Ties.** Examples of equal uncertainty are answered in random order, and the curve is the expectation over
that order: within a tie each answer costs the tie's mean error. A constant uncertainty therefore gives a flat
curve at the mean error, and the result does not depend on the order of the data.

Sources: El-Yaniv and Wiener, "On the foundations of noise-free selective classification", JMLR 2010; Geifman,
Uziel and El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers", ICLR 2019,
arXiv:1805.08206; Traub et al., "Overcoming common flaws in the evaluation of selective classification systems",
NeurIPS 2024, arXiv:2407.01032 (AUGRC).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float, check_same_shape


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Risk-coverage curve, in 64 bits.

    Attributes:
        coverage: Share of answered examples, ``[N]``, from ``1 / N`` to 1.
        risk: Mean error of the answered examples, ``[N]``, in the error's units.
        optimal_risk: The same for the best ordering, ``[N]``.
    """

    coverage: Tensor
    risk: Tensor
    optimal_risk: Tensor

    @property
    def aurc(self) -> Tensor:
        """Area under the risk-coverage curve, 0-d, in the error's units."""
        return self.risk.mean()

    @property
    def excess_aurc(self) -> Tensor:
        """E-AURC: the area above that of the best ordering, 0-d, zero for a perfect uncertainty."""
        return (self.risk - self.optimal_risk).mean()

    @property
    def generalized_risk(self) -> Tensor:
        """Mean over all examples of the error where it is answered, ``[N]``, in the error's units."""
        return self.coverage * self.risk

    @property
    def augrc(self) -> Tensor:
        """Area under the generalized risk against coverage, 0-d, in the error's units."""
        return self.generalized_risk.mean() - self.risk[-1] / (2 * len(self.risk))


@explained
def risk_coverage(uncertainty: Tensor, error: Tensor) -> RiskCoverage:
    """Risk-coverage curve of an uncertainty.

    Args:
        uncertainty: Uncertainty of each example ``[N]``, higher is answered later; infinities are allowed.
        error: Error of each example ``[N]``: zero-one errors (Boolean or integer) or any finite loss.

    Returns:
        The curve over all coverages.

    Raises:
        TypeError: ``uncertainty`` is not a floating-point tensor, or ``error`` not a real one.
        ValueError: Not one-dimensional, shapes that differ, NaN, or an error that is not finite.
    """
    uncertainty = check_float(uncertainty, "uncertainty", finite=False, ndim=1).detach()
    if isinstance(error, Tensor) and not error.is_complex():
        error = error.double()
    error = check_float(error, "error", finite=True).detach()
    check_same_shape(error, "error", uncertainty.shape, "uncertainty")

    _, group, size = torch.unique(uncertainty, return_inverse=True, return_counts=True)
    group_error = torch.zeros_like(size, dtype=error.dtype).index_add(0, group, error) / size
    answered = torch.arange(1, len(error) + 1, dtype=error.dtype, device=error.device)
    return RiskCoverage(
        coverage=answered / len(error),
        risk=group_error.repeat_interleave(size).cumsum(0) / answered,
        optimal_risk=error.sort().values.cumsum(0) / answered,
    )


@explained
def aurc(uncertainty: Tensor, error: Tensor) -> Tensor:
    """Area under the risk-coverage curve; lower is better.

    Args:
        uncertainty: Uncertainty of each example ``[N]``, higher is answered later.
        error: Error of each example ``[N]``, zero-one or any finite loss.

    Returns:
        0-d, in the error's units.

    Raises:
        TypeError: Wrong dtypes, see :func:`risk_coverage`.
        ValueError: Wrong shapes or values, see :func:`risk_coverage`.
    """
    return risk_coverage(uncertainty, error).aurc


@explained
def augrc(uncertainty: Tensor, error: Tensor) -> Tensor:
    """Area under the generalized risk-coverage curve; lower is better.

    Args:
        uncertainty: Uncertainty of each example ``[N]``, higher is answered later.
        error: Error of each example ``[N]``, zero-one or any finite loss.

    Returns:
        0-d, in the error's units.

    Raises:
        TypeError: Wrong dtypes, see :func:`risk_coverage`.
        ValueError: Wrong shapes or values, see :func:`risk_coverage`.
    """
    return risk_coverage(uncertainty, error).augrc
