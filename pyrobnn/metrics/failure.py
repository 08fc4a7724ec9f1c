"""How well an uncertainty tells wrong answers from right ones: measures of failure prediction at once.

    error_rate    share of wrong answers
    ap_errors     average precision with the errors as positives, by uncertainty; chance is the error rate
    ap_success    average precision with the right answers as positives, by confidence; chance is their share
    auroc         P(an error is more uncertain than a right answer), ties counting one half; chance 0.5
    fpr95         of the errors, the share that is accepted where at least 95 % of the right answers are; perfect 0
    aurc, excess_aurc, augrc    areas of selective prediction (:mod:`pyrobnn.metrics.selective`)

AP and FPR95 depend on the error rate or on the tail of the right answers, AUROC on neither, AURC and AUGRC on all: a
table has several of them. Two predictors with different errors are compared by AURC or AUGRC, which count the errors
themselves.

Sources: Hendrycks and Gimpel, ICLR 2017, arXiv:1610.02136; Corbiere et al., "Addressing failure prediction by learning
model confidence", NeurIPS 2019, arXiv:1910.04851; Jaeger et al., "A call to reflect on evaluation practices for failure
detection in image classification", ICLR 2023, arXiv:2211.15259.
"""

from __future__ import annotations

from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics.detection import aupr, auroc, fpr_at_tpr
from pyrobnn.metrics.selective import risk_coverage

__all__ = ["failure_report"]


@explained
def failure_report(uncertainty: Tensor, error: Tensor) -> dict[str, float]:
    """All measures of failure prediction.

    Args:
        uncertainty: Uncertainty of each answer ``[N]``, higher is more suspect; negate a confidence. Infinities are
            allowed.
        error: Whether each answer is wrong ``[N]``: Boolean, or zeros and ones.

    Returns:
        ``error_rate``, ``ap_errors``, ``ap_success``, ``auroc``, ``fpr95``, ``aurc``, ``excess_aurc``, ``augrc``.

    Raises:
        TypeError: ``uncertainty`` is not a floating-point tensor, or ``error`` not a real one.
        ValueError: Not one-dimensional, shapes that differ, NaN, errors other than zero and one, or all answers alike:
            without an error there is nothing to predict.
    """
    curve = risk_coverage(uncertainty, error)
    wrong = error != 0
    if not bool((wrong == error).all()):
        other = error[(error != 0) & (error != 1)][0].item()
        raise ValueError(f"error: expected zeros and ones (wrong or not), got {other:g}; use risk_coverage for losses.")
    if not 0 < int(wrong.sum()) < len(wrong):
        kind = "wrong" if bool(wrong.any()) else "right"
        raise ValueError(
            f"error: all {len(wrong)} answers are {kind}, so that there is nothing to tell apart; take more data."
        )
    right, errors = uncertainty[~wrong], uncertainty[wrong]
    return {
        "error_rate": len(errors) / len(wrong),
        "ap_errors": aupr(right, errors, "out"),
        "ap_success": aupr(right, errors, "in"),
        "auroc": auroc(right, errors),
        "fpr95": fpr_at_tpr(right, errors, positive="in"),
        "aurc": float(curve.aurc),
        "excess_aurc": float(curve.excess_aurc),
        "augrc": float(curve.augrc),
    }
