r"""FairnessGap: groups have equal mean predictions (demographic parity),

.. math::  v(f) = \max_{g, h} \big|E[f(x) \mid g] - E[f(x) \mid h]\big| - t .

The means are those of a batch of inputs, so it should hold enough of every group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_int, check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.constraints.base import Constraint, Form, Function, chosen
from pyrobnn.objectives.auxiliary import Auxiliary

__all__ = ["FairnessGap"]


@explained
class FairnessGap(Constraint):
    """The largest difference of two groups' mean predictions.

    Args:
        group: From a batch of inputs to the group of each row ``[B]``, an integer or boolean tensor.
        inputs: Where, as for :class:`~pyrobnn.function_space.Constraint`.
        weight: As there.
        tolerance: The largest difference that is allowed, in the units of the predictions.
        output: Which prediction (the favorable class), if there are several.
        form: As there.
        temperature: As there.
        name: As there.

    Raises:
        TypeError: If ``inputs`` are none, or ``group`` is no function.
        ValueError: If ``tolerance`` is negative; at a step, if a batch has one group only.
    """

    name = "fairness_gap"

    def __init__(
        self,
        group: Callable[[Any], Tensor],
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        tolerance: float = 0.0,
        output: int | None = None,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        super().__init__(inputs, weight, form=form, temperature=temperature, name=name)
        if not callable(group) or isinstance(group, type):
            raise TypeError(f"group: expected a function of a batch of inputs, got {group!r}.")
        check_non_negative("tolerance", tolerance, "difference of predictions")
        if output is not None:
            check_int("output", output, 0)
        self.group, self.tolerance, self.output = group, tolerance, output

    def violation(self, functions: Sequence[Function], x: Any) -> Tensor:
        """The gap above the tolerance, one number ``[1]``."""
        (function,) = functions
        found = chosen(function(x), self.output, type(self).__name__)
        member = self.group(x)
        if not isinstance(member, Tensor) or member.shape != found.shape or member.is_floating_point():
            what = f"{member.dtype} of shape {list(member.shape)}" if isinstance(member, Tensor) else repr(member)
            raise ValueError(f"group: expected a group for each row, integers or booleans [{len(found)}], got {what}.")
        groups = member.unique()
        if len(groups) < 2:
            raise ValueError(
                f"group: all {len(found)} rows of a batch are of one group; pass inputs with at least two groups in "
                "each batch."
            )
        means = torch.stack([found[member == value].mean() for value in groups])
        return (means.amax() - means.amin() - self.tolerance).reshape(1)
