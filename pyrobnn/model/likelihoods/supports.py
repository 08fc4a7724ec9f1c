"""Checks of targets that several likelihoods share: positive numbers, counts, labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyrobnn.model.likelihoods.base import Likelihood

__all__ = ["check_counts", "check_ignore_index", "check_labels", "check_positive_targets"]


def check_ignore_index(ignore_index: object) -> None:
    """Refuses what is neither a label nor None.

    Raises:
        TypeError: If it is something else.
    """
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise TypeError(f"ignore_index: expected the label to ignore, an int, or None, got {ignore_index!r}.")


def check_positive_targets(likelihood: Likelihood, y: Tensor) -> None:
    """Refuses targets that are no positive, finite floating-point numbers.

    Raises:
        TypeError: If the dtype is wrong.
        ValueError: If a value is; the message says in how many rows.
    """
    _check(likelihood, y, "positive floating-point targets", lambda values: (values > 0) & values.isfinite())


def check_counts(likelihood: Likelihood, y: Tensor) -> None:
    """Refuses targets that are no whole numbers of at least 0, as floats.

    Raises:
        TypeError: If the dtype is wrong.
        ValueError: If a value is; the message says in how many rows.
    """
    _check(
        likelihood,
        y,
        "floating-point counts (0, 1, 2 …)",
        lambda values: (values >= 0) & (values == values.round()) & values.isfinite(),
    )


def _check(likelihood: Likelihood, y: Tensor, expected: str, fits: Callable[[Tensor], Tensor]) -> None:
    if not y.is_floating_point():
        likelihood.refuse_targets(y, expected, floating=True)
    right = fits(y)
    observed = likelihood.observed_mask(y)
    if observed is not None:
        right = right | ~observed
    if not bool(right.all()):
        likelihood.refuse_targets(y, expected, floating=True, wrong=~right)


def check_labels(likelihood: Likelihood, y: Tensor, classes: int, ignore_index: int | None, source: str) -> None:
    """Refuses targets that are no integers in ``0 … C - 1`` and not ``ignore_index``.

    Args:
        likelihood: The likelihood.
        y: The targets.
        classes: Number C of classes.
        ignore_index: The label that means "not observed", if any.
        source: Where C comes from, for the message.

    Raises:
        TypeError: If the dtype is wrong.
        ValueError: If a value is.
    """
    wrong_kind = y.is_floating_point() or y.is_complex() or y.dtype == torch.bool
    values = y if wrong_kind else likelihood.observed_values(y)
    if wrong_kind or (values.numel() and (values.min() < 0 or values.max() >= classes)):
        also = "" if ignore_index is None else f" or {ignore_index}, which is ignored,"
        likelihood.refuse_targets(y, f"integer labels from 0 to {classes - 1}{also} ({source})", floating=False)
