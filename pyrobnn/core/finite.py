"""Whether tensors are finite, and refusal of batches that are not."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyrobnn.core.trees import leaves

__all__ = ["check_inputs", "check_weight", "is_finite", "weighted"]


def check_inputs(inputs: Any, index: int) -> None:
    """Refuses NaN and infinities among the inputs of the batch ``index``.

    Only zeros and minus infinities are an additive attention mask, which is allowed.

    Raises:
        ValueError: If there are some; the message names the first row.
    """
    for leaf in (inputs,) if isinstance(inputs, Tensor) else leaves(inputs):
        value = leaf.data if isinstance(leaf, PackedSequence) else leaf
        if isinstance(value, Tensor) and value.is_floating_point():
            _check_finite(value, index)


def check_weight(weight: Tensor) -> None:
    """Refuses weights that are negative or not finite.

    Raises:
        ValueError: If there are some; the message names the first row.
    """
    wrong = ~(weight.isfinite() & (weight >= 0))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"weight: expected finite weights of at least 0, but that of row {row} is {float(weight[row]):.4g}."
        )


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """Values of rows ``[B]`` times their weights; a row of weight 0 is left out, whether its value is finite or not.

    Args:
        values: The values.
        weight: Weights of their shape, or None for 1.
    """
    return values if weight is None else (values * weight).where(weight > 0, 0.0)


def is_finite(value: Tensor) -> bool:
    """Whether a tensor of real numbers holds neither NaN nor infinity, as a rule without memory of its size.

    Any NaN or infinity shows in the sum, at a tenth of the cost of checking each element; a sum may also overflow.
    """
    return math.isfinite(value.sum()) or bool(value.isfinite().all())


def _check_finite(value: Tensor, index: int) -> None:
    if math.isfinite(value.sum()):
        return
    finite = value.isfinite()
    if bool((finite & (value == 0) | value.isneginf()).all()):
        return
    wrong = (~finite).reshape(len(value) if value.dim() else 1, -1).any(1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"x: batch {index} holds NaN or infinite inputs in {len(wrong)} rows (the first is row {wrong[0]}); "
            "nothing was changed by this batch. Clean or impute the data."
        )
