"""Input checks shared by the consumers of predictions.

Each check returns the tensor ready for use (floating point of at least 32 bits, labels as ``int64``) or
raises an error that names the argument, what was expected, what came and how to mend it. The checks read
values, so they synchronize with an accelerator; metrics are called once per batch, where this does not
matter.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pyrobnn.core.finite import check_weight

Reduction = Literal["mean", "none"]

SUM_TOLERANCE = 1e-3
"""Largest accepted ``|sum of probabilities - 1|``; two machine epsilons of the given dtype if more."""


def check_probs(probs: Tensor, *, draws: bool = False, name: str = "probs") -> Tensor:
    """Check class probabilities along the last dimension.

    Args:
        probs: Probabilities ``[..., C]``, or ``[S, ..., C]`` with ``draws``.
        draws: Whether a leading dimension of posterior draws is required.
        name: The argument's name in messages.

    Returns:
        ``probs`` in at least 32 bits.

    Raises:
        TypeError: ``probs`` is not a floating-point tensor.
        ValueError: Too few dimensions or classes, no elements, NaN, a negative value or a sum other than one.
    """
    given, probs = probs, check_float(probs, name, finite=True)
    expected = "[S, ..., C] (posterior draws first, classes last)" if draws else "[..., C] (classes last)"
    if probs.ndim < (2 if draws else 1):
        raise ValueError(f"{name}: expected shape {expected}, got {list(probs.shape)}.")
    if probs.shape[-1] < 2:
        raise ValueError(
            f"{name}: expected shape {expected} with at least 2 classes, got {list(probs.shape)}. "
            "For the probability p of a positive class pass torch.stack([1 - p, p], -1)."
        )
    if (smallest := probs.detach().min()) < 0:
        raise ValueError(
            f"{name}: expected probabilities, got the negative value {smallest.item():.4g}. "
            "Apply softmax to logits, exp to log probabilities."
        )
    tolerance = max(SUM_TOLERANCE, 2 * torch.finfo(given.dtype).eps)
    error = (probs.detach().sum(-1) - 1).abs().max()
    if error > tolerance:
        raise ValueError(
            f"{name}: the last dimension must sum to 1 within {tolerance:g}, off by {error.item():.4g}. "
            "Apply softmax to logits and put the classes last."
        )
    return probs


def check_labels(y: Tensor, shape: torch.Size, num_classes: int, *, name: str = "y") -> Tensor:
    """Check class labels.

    Args:
        y: Labels ``0 .. num_classes - 1`` of shape ``shape``, any integer or Boolean type.
        shape: The shape that the predictions imply.
        num_classes: Number of classes.
        name: The argument's name in messages.

    Returns:
        ``y`` as ``int64``.

    Raises:
        TypeError: ``y`` is not an integer tensor.
        ValueError: Wrong shape, or a label outside the classes.
    """
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex():
        raise TypeError(f"{name}: expected a tensor of integer class labels, got {_kind(y)}. Use {name}.long().")
    if y.shape != shape:
        raise ValueError(
            f"{name}: expected one label per prediction, shape {list(shape)}, got {list(y.shape)}. "
            "Turn one-hot labels into indices with argmax(-1)."
        )
    y = y.long()
    low, high = y.aminmax()
    if low < 0 or high >= num_classes:
        outside = low if low < 0 else high
        raise ValueError(
            f"{name}: expected labels in 0 .. {num_classes - 1}, got {outside.item()}. "
            "Leave out examples that carry an ignore label."
        )
    return y


def check_float(x: Tensor, name: str, *, finite: bool, ndim: int | None = None) -> Tensor:
    """Check a floating-point tensor.

    Args:
        x: The tensor.
        name: The argument's name in messages.
        finite: Whether infinities are refused; NaN always is.
        ndim: The required number of dimensions, if any.

    Returns:
        ``x`` in at least 32 bits.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: Wrong number of dimensions, no elements, or a forbidden value.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {_kind(x)}. Use {name}.float().")
    if ndim is not None and x.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimension(s), got shape {list(x.shape)}. Use {name}.flatten().")
    if x.numel() == 0:
        raise ValueError(f"{name}: expected at least one element, got shape {list(x.shape)}.")
    values = x.detach()
    low, high = values.aminmax()  # NaN if any element is; one pass without a mask as large as x
    if low.isnan() or (finite and (low.isinf() or high.isinf())):
        bad = ~values.isfinite() if finite else values.isnan()
        raise ValueError(
            f"{name}: expected {'finite values' if finite else 'no NaN'}, "
            f"got {int(bad.sum())} bad of {x.numel()} (first: {values[bad][0].item()})."
        )
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_same_shape(x: Tensor, name: str, shape: torch.Size, other: str) -> None:
    """Refuse broadcasting, which turns ``[N, 1]`` against ``[N]`` into ``[N, N]`` pairs.

    Args:
        x: The tensor to check.
        name: Its name in messages.
        shape: The required shape.
        other: The name of the argument that sets ``shape``.

    Raises:
        ValueError: The shapes differ.
    """
    if x.shape != shape:
        raise ValueError(
            f"{name}: expected shape {list(shape)} as implied by {other}, got {list(x.shape)}. "
            "Shapes are not broadcast; use squeeze, reshape or expand_as."
        )


def check_regression(**arguments: Tensor) -> tuple[Tensor, ...]:
    """Check finite floating-point tensors of one shape, by name; the first one sets it.

    Raises:
        TypeError: One is not a floating-point tensor.
        ValueError: Shapes differ, or values are not finite.
    """
    checked = {name: check_float(x, name, finite=True) for name, x in arguments.items()}
    first = next(iter(checked))
    for name, x in checked.items():
        check_same_shape(x, name, checked[first].shape, first)
    return tuple(checked.values())


def check_row_weights(weight: Tensor, rows: int) -> Tensor:
    """Check a weight for each example, in 64 bits.

    Args:
        weight: Weights ``[rows]``.
        rows: Number of examples.

    Raises:
        TypeError: ``weight`` is not a floating-point tensor.
        ValueError: Wrong shape, a weight that is negative or not finite, or all of them zero.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"weight: expected a floating-point tensor, got {_kind(weight)}.")
    if weight.shape != (rows,):
        raise ValueError(f"weight: expected one weight for each example, shape [{rows}], got {list(weight.shape)}.")
    check_weight(weight)
    if not bool((weight > 0).any()):
        raise ValueError("weight: expected one above 0 at least, got only zeros.")
    return weight.double()


def reduced(values: Tensor, reduction: Reduction, weight: Tensor | None = None) -> Tensor:
    """The mean of scores, or the scores themselves.

    Args:
        values: Scores ``[N, ...]``.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean; None weighs all alike.

    Raises:
        TypeError: ``weight`` is not a floating-point tensor.
        ValueError: ``reduction`` is unknown, or the weights are wrong or not used.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction: expected 'mean' or 'none', got {reduction!r}.")
    if weight is None:
        return values.mean() if reduction == "mean" else values
    if reduction == "none":
        raise ValueError("weight: it weighs the mean of the scores, which reduction='none' does not take.")
    if not values.dim():
        raise ValueError("weight: expected scores of several examples, got one of a scalar.")
    weight = check_row_weights(weight, len(values)).to(values.device)
    by_row = values.double().reshape(len(values), -1).mean(1)
    positive = weight > 0  # 0 times an infinite score would be NaN
    return ((weight * by_row)[positive].sum() / weight.sum()).to(values.dtype)


def _kind(x: object) -> str:
    return f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
