"""How well a score separates known from unknown inputs.

``known: [N]`` and ``unknown: [M]`` are scores of in- and out-of-distribution inputs, *higher = more abnormal*
(an entropy, a mutual information, ``1 - max p``; negate confidences and log densities). The measures are

    AUROC            P(score of an unknown > score of a known), ties counting one half; chance 0.5, perfect 1
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

from pyrobnn.uncertainty._checks import check_float

Positive = Literal["unknown", "known"]


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Area under the ROC curve; the same whichever class is called positive.

    Args:
        known: Scores of known inputs ``[N]``, higher = more abnormal.
        unknown: Scores of unknown inputs ``[M]``.

    Returns:
        A value in ``[0, 1]``; below 0.5 the score points the wrong way.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Not one-dimensional, empty, or NaN.
    """
    return float(_metrics().roc_auc_score(*_labels_and_ranks(known, unknown, "unknown")))


def aupr(known: Tensor, unknown: Tensor, positive: Positive = "unknown") -> float:
    """Area under the precision-recall curve, as average precision.

    ``sum_k (recall_k - recall_{k-1}) precision_k`` over the thresholds; no linear interpolation, which is too
    optimistic (Davis and Goadrich, ICML 2006). The value depends on ``N : M``; state them with it.

    Args:
        known: Scores of known inputs ``[N]``, higher = more abnormal.
        unknown: Scores of unknown inputs ``[M]``.
        positive: The class to retrieve: ``"unknown"`` (AUPR-Out) ranks by the score, ``"known"`` (AUPR-In) by
            its negative.

    Returns:
        A value in ``(0, 1]``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Not one-dimensional, empty, NaN, or an unknown ``positive``.
    """
    return float(_metrics().average_precision_score(*_labels_and_ranks(known, unknown, positive)))


def fpr_at_tpr(known: Tensor, unknown: Tensor, tpr: float = 0.95, positive: Positive = "unknown") -> float:
    """False positive rate at the first threshold whose true positive rate reaches ``tpr`` (FPR95).

    Papers differ in the positive class. ``"unknown"``, the default, as in outlier exposure: of the known
    inputs, the share that raises a false alarm when 95 % of the unknown ones are caught. ``"known"``, as in
    ODIN: of the unknown inputs, the share that slips through when 95 % of the known ones are accepted. There
    is no interpolation between thresholds.

    Args:
        known: Scores of known inputs ``[N]``, higher = more abnormal.
        unknown: Scores of unknown inputs ``[M]``.
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
    labels, ranks = _labels_and_ranks(known, unknown, positive)
    false_positive_rate, true_positive_rate, _ = _metrics().roc_curve(labels, ranks, drop_intermediate=False)
    return float(false_positive_rate[np.argmax(true_positive_rate >= tpr)])


def detection_report(known: Tensor, unknown: Tensor) -> dict[str, float]:
    """All measures at once.

    Args:
        known: Scores of known inputs ``[N]``, higher = more abnormal.
        unknown: Scores of unknown inputs ``[M]``.

    Returns:
        ``auroc``, ``aupr_unknown``, ``aupr_known``, ``fpr95_unknown`` and ``fpr95_known``, where the suffix
        names the positive class.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Not one-dimensional, empty, or NaN.
    """
    return {
        "auroc": auroc(known, unknown),
        "aupr_unknown": aupr(known, unknown, "unknown"),
        "aupr_known": aupr(known, unknown, "known"),
        "fpr95_unknown": fpr_at_tpr(known, unknown, positive="unknown"),
        "fpr95_known": fpr_at_tpr(known, unknown, positive="known"),
    }


def _metrics() -> ModuleType:
    """scikit-learn's metrics, loaded when first used: the import costs as much as torch's."""
    return import_module("sklearn.metrics")


def _labels_and_ranks(known: Tensor, unknown: Tensor, positive: Positive) -> tuple[np.ndarray, np.ndarray]:
    """Labels (1 = positive) and dense ranks that grow towards the positive class, each ``[N + M]``."""
    if positive not in ("unknown", "known"):
        raise ValueError(f"positive: expected 'unknown' or 'known', got {positive!r}.")
    known = check_float(known, "known", finite=False, ndim=1).detach().cpu()
    unknown = check_float(unknown, "unknown", finite=False, ndim=1).detach().cpu()
    ranks = torch.unique(torch.cat([known, unknown]), return_inverse=True)[1].numpy()
    is_unknown = np.repeat([0, 1], [len(known), len(unknown)])
    return (is_unknown, ranks) if positive == "unknown" else (1 - is_unknown, -ranks)
