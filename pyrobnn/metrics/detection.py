"""How well a score separates in-distribution from out-of-distribution inputs.

``in_distribution: [N]`` and ``out_of_distribution: [M]`` are scores of in- and out-of-distribution inputs, *higher =
more abnormal* (an entropy, a mutual information, ``1 - max p``; negate confidences and log densities). The measures are

    AUROC            P(score out of distribution > score in distribution), ties counting one half; chance 0.5, perfect 1
    AUPR             average precision with either class as the positive one; chance is that class's share
    FPR at TPR 95 %  share of negatives flagged when at least 95 % of the positives are; perfect 0

Only the order of the scores matters, so they are replaced by ranks first: no precision is lost, infinite
scores are welcome, and scikit-learn computes the rest in 64 bits on the CPU. (torchmetrics passes scores
outside ``[0, 1]`` through a sigmoid, whose saturation ties large scores.) Results are Python floats.

Sources: Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples", ICLR
2017, arXiv:1610.02136; Liang et al. (ODIN), ICLR 2018, arXiv:1706.02690; Hendrycks et al. (outlier exposure),
ICLR 2019, arXiv:1812.04606.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float

Positive = Literal["out", "in"]


@explained
def auroc(in_distribution: Tensor, out_of_distribution: Tensor) -> float:
    """Area under the ROC curve; the same whichever class is called positive.

    Args:
        in_distribution: Scores of in-distribution inputs ``[N]``, higher = more abnormal.
        out_of_distribution: Scores of out-of-distribution inputs ``[M]``.

    Returns:
        A value in ``[0, 1]``; below 0.5 the score points the wrong way.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Not one-dimensional, empty, or NaN.
    """
    return float(_metrics().roc_auc_score(*_labels_and_ranks(in_distribution, out_of_distribution, "out")))


@explained
def aupr(in_distribution: Tensor, out_of_distribution: Tensor, positive: Positive = "out") -> float:
    """Area under the precision-recall curve, as average precision.

    ``sum_k (recall_k - recall_{k-1}) precision_k`` over the thresholds; no linear interpolation, which is too
    optimistic (Davis and Goadrich, ICML 2006). The value depends on ``N : M``; state them with it.

    Args:
        in_distribution: Scores of in-distribution inputs ``[N]``, higher = more abnormal.
        out_of_distribution: Scores of out-of-distribution inputs ``[M]``.
        positive: The class to retrieve: ``"out"`` (AUPR-Out) ranks by the score, ``"in"`` (AUPR-In) by
            its negative.

    Returns:
        A value in ``(0, 1]``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Not one-dimensional, empty, NaN, or an unknown ``positive``.
    """
    return float(_metrics().average_precision_score(*_labels_and_ranks(in_distribution, out_of_distribution, positive)))


@explained
def fpr_at_tpr(
    in_distribution: Tensor, out_of_distribution: Tensor, tpr: float = 0.95, positive: Positive = "out"
) -> float:
    """False positive rate at the first threshold whose true positive rate reaches ``tpr`` (FPR95).

    Papers differ in the positive class. ``"out"``, the default, as in outlier exposure: of the in-distribution
    inputs, the share that raises a false alarm when 95 % of those out of distribution are caught. ``"in"``, as in
    ODIN: of the out-of-distribution inputs, the share that is accepted when 95 % of the others are. There
    is no interpolation between thresholds.

    Args:
        in_distribution: Scores of in-distribution inputs ``[N]``, higher = more abnormal.
        out_of_distribution: Scores of out-of-distribution inputs ``[M]``.
        tpr: The true positive rate to reach, in ``(0, 1]``.
        positive: The positive class.

    Returns:
        A value in ``[0, 1]``; lower is better.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Not one-dimensional, empty, NaN, ``tpr`` out of range, or an unknown ``positive``.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr: expected a rate in (0, 1], got {tpr}. Pass 0.95 for 95 %.")
    labels, ranks = _labels_and_ranks(in_distribution, out_of_distribution, positive)
    false_positive_rate, true_positive_rate, _ = _metrics().roc_curve(labels, ranks, drop_intermediate=False)
    return float(false_positive_rate[np.argmax(true_positive_rate >= tpr)])


@explained
def detection_report(in_distribution: Tensor, out_of_distribution: Tensor) -> dict[str, float]:
    """All measures at once.

    Args:
        in_distribution: Scores of in-distribution inputs ``[N]``, higher = more abnormal.
        out_of_distribution: Scores of out-of-distribution inputs ``[M]``.

    Returns:
        ``auroc``, ``aupr_out``, ``aupr_in``, ``fpr95_out`` and ``fpr95_in``, where the suffix
        names the positive class.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Not one-dimensional, empty, or NaN.
    """
    return {
        "auroc": auroc(in_distribution, out_of_distribution),
        "aupr_out": aupr(in_distribution, out_of_distribution, "out"),
        "aupr_in": aupr(in_distribution, out_of_distribution, "in"),
        "fpr95_out": fpr_at_tpr(in_distribution, out_of_distribution, positive="out"),
        "fpr95_in": fpr_at_tpr(in_distribution, out_of_distribution, positive="in"),
    }


def _metrics() -> ModuleType:
    """scikit-learn's metrics, loaded when first used: the import costs as much as torch's."""
    return import_module("sklearn.metrics")


def _labels_and_ranks(
    in_distribution: Tensor, out_of_distribution: Tensor, positive: Positive
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (1 = positive) and dense ranks that grow toward the positive class, each ``[N + M]``."""
    if positive not in ("out", "in"):
        raise ValueError(f"positive: expected 'out' or 'in', got {positive!r}.")
    in_distribution = check_float(in_distribution, "in_distribution", finite=False, ndim=1).detach().cpu()
    out_of_distribution = check_float(out_of_distribution, "out_of_distribution", finite=False, ndim=1).detach().cpu()
    ranks = torch.unique(torch.cat([in_distribution, out_of_distribution]), return_inverse=True)[1].numpy()
    is_out = np.repeat([0, 1], [len(in_distribution), len(out_of_distribution)])
    return (is_out, ranks) if positive == "out" else (1 - is_out, -ranks)
