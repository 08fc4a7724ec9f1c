"""Scores of class probabilities against the classes that were observed.

They take class probabilities ``probs: [..., C]`` (of a posterior: the *mean over draws* of the probabilities, never of
the logits) and labels ``y: [...]``. Lower is better, except for ``accuracy``. ``nll`` and ``brier`` are proper: the
true distribution minimizes them in expectation. With ``reduction="mean"`` a score is the 0-d mean over all examples,
with ``"none"`` one value each.

Source: Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 102, 2007.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import Reduction, check_labels, check_probs, reduced


@explained
def nll(probs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Negative log likelihood (log score) ``-log p_y``, in nats.

    Infinite where the observed class was given probability zero: the score's honest value, not an error.

    Args:
        probs: Class probabilities ``[..., C]``.
        y: Labels ``[...]``.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or ``[...]``; in ``[0, inf]``.

    Raises:
        TypeError: Wrong dtypes.
        ValueError: Not probabilities, shapes that do not fit, labels outside the classes.
    """
    probs, y = _classification(probs, y)
    return reduced(-probs.gather(-1, y.unsqueeze(-1)).squeeze(-1).log(), reduction)


@explained
def brier(probs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Brier score, summed over classes: ``sum_c (p_c - [y = c])²``, in ``[0, 2]``.

    Brier, "Verification of forecasts expressed in terms of probability", 1950. Some libraries report the
    score of the positive class alone for two classes, which is half of this one, or divide by ``C``.

    Args:
        probs: Class probabilities ``[..., C]``.
        y: Labels ``[...]``.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or ``[...]``.

    Raises:
        TypeError: Wrong dtypes.
        ValueError: Not probabilities, shapes that do not fit, labels outside the classes.
    """
    probs, y = _classification(probs, y)
    one_hot = torch.nn.functional.one_hot(y, probs.shape[-1])
    return reduced((probs - one_hot).square().sum(-1), reduction)


@explained
def accuracy(probs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Share of examples whose most probable class is the label; ties go to the lowest class index.

    Args:
        probs: Class probabilities ``[..., C]``.
        y: Labels ``[...]``.
        reduction: ``"mean"`` or ``"none"``.

    Returns:
        0-d mean, or ``[...]`` of zeros and ones.

    Raises:
        TypeError: Wrong dtypes.
        ValueError: Not probabilities, shapes that do not fit, labels outside the classes.
    """
    probs, y = _classification(probs, y)
    return reduced((probs.argmax(-1) == y).to(probs.dtype), reduction)


def _classification(probs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    probs = check_probs(probs)
    return probs, check_labels(y, probs.shape[:-1], probs.shape[-1])
