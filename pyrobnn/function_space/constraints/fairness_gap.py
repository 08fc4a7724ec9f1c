r"""FairnessGap: groups have equal mean predictions (demographic parity),

.. math::  v(f) = \max_{g, h} \big|E[f(x) \mid g] - E[f(x) \mid h]\big| - t,

or equal ones among rows of the same outcome y (equalized odds; Hardt, Price & Srebro 2016),

.. math::  v(f) = \max_y \max_{g, h} \big|E[f(x) \mid g, y] - E[f(x) \mid h, y]\big| - t .

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
        outcome: For equalized odds the outcome of each row ``[B]``, an integer or boolean tensor: those of ``inputs``,
            if they are one tensor, or a function of a batch of inputs, as ``group`` is. Outcomes of which a batch has
            one group only are left out. None for demographic parity.
        tolerance: The largest difference that is allowed, in the units of the predictions.
        output: Which prediction (the favorable class), if there are several.
        form: As there.
        temperature: As there.
        name: As there.

    Raises:
        TypeError: If ``inputs`` are none, ``group`` is no function, or ``outcome`` neither a function nor a tensor.
        ValueError: If ``tolerance`` is negative; at a step, if a batch has one group only, for every outcome.
    """

    name = "fairness_gap"

    def __init__(
        self,
        group: Callable[[Any], Tensor],
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        outcome: Tensor | Callable[[Any], Tensor] | None = None,
        tolerance: float = 0.0,
        output: int | None = None,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        super().__init__(inputs, weight, form=form, temperature=temperature, name=name)
        if not callable(group) or isinstance(group, type):
            raise TypeError(f"group: expected a function of a batch of inputs, got {group!r}.")
        if outcome is not None and (
            isinstance(outcome, type) or not (callable(outcome) or isinstance(outcome, Tensor))
        ):
            raise TypeError(f"outcome: expected a tensor of outcomes, a function of a batch or None, got {outcome!r}.")
        check_non_negative("tolerance", tolerance, "difference of predictions")
        if output is not None:
            check_int("output", output, 0)
        self.group, self.outcome, self.tolerance, self.output = group, outcome, tolerance, output

    def violation(self, functions: Sequence[Function], x: Any) -> Tensor:
        """The gap above the tolerance, one number ``[1]``."""
        (function,) = functions
        found = chosen(function(x), self.output, type(self).__name__)
        member = _of_rows("group", self.group(x), found)
        if self.outcome is None:
            parts = [torch.ones_like(found, dtype=torch.bool)]
        else:
            given = self.outcome if isinstance(self.outcome, Tensor) else self.outcome(x)
            outcome = _of_rows("outcome", given, found)
            parts = [outcome == value for value in outcome.unique()]
        gaps = []
        for part in parts:
            groups = member[part].unique()
            if len(groups) > 1:
                means = torch.stack([found[part & (member == value)].mean() for value in groups])
                gaps.append(means.amax() - means.amin())
        if not gaps:
            each = "" if self.outcome is None else " of the same outcome"
            raise ValueError(
                f"group: all {len(found)} rows of a batch{each} are of one group; pass inputs with at least two groups "
                "in each batch."
            )
        return (torch.stack(gaps).amax() - self.tolerance).reshape(1)


def _of_rows(name: str, given: Any, predictions: Tensor) -> Tensor:
    """A class for each row.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(given, Tensor) or given.shape != predictions.shape or given.is_floating_point():
        what = f"{given.dtype} of shape {list(given.shape)}" if isinstance(given, Tensor) else repr(given)
        raise ValueError(f"{name}: expected one for each row, integers or booleans [{len(predictions)}], got {what}.")
    return given.to(predictions.device)
