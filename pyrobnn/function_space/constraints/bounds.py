r"""Bounds: predictions stay between two numbers, :math:`v(f, x) = \max(a - f(x),\, f(x) - b)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_number
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.constraints.base import Constraint, Form, Function
from pyrobnn.objectives.auxiliary import Auxiliary

__all__ = ["Bounds"]


@explained
class Bounds(Constraint):
    """Predictions are not below ``lower`` and not above ``upper``; of several in a row the worst one counts.

    Args:
        lower: The least value, or None for none.
        upper: The largest value, or None.
        inputs: Where, as for :class:`~pyrobnn.function_space.Constraint`.
        weight: As there.
        form: As there.
        temperature: As there.
        name: As there.

    Raises:
        TypeError: If ``inputs`` are none, or a bound is no number.
        ValueError: If there is no bound, or ``lower`` is above ``upper``.
    """

    name = "bounds"

    def __init__(
        self,
        lower: float | None,
        upper: float | None,
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        super().__init__(inputs, weight, form=form, temperature=temperature, name=name)
        for argument, bound in (("lower", lower), ("upper", upper)):
            if bound is not None:
                check_number(argument, bound, -math.inf, math.inf)
        if lower is None and upper is None:
            raise ValueError("lower, upper: both are None, so there is nothing to keep; state one.")
        if lower is not None and upper is not None and lower > upper:
            raise ValueError(f"lower: expected at most upper={upper}, got {lower}.")
        self.lower, self.upper = lower, upper

    def violation(self, functions: Sequence[Function], x: Any) -> Tensor:
        """The distance to the bound that is nearest to being violated ``[B]``."""
        (function,) = functions
        found = function(x)
        found = found.reshape(len(found), -1)
        sides = [] if self.lower is None else [self.lower - found]
        sides += [] if self.upper is None else [found - self.upper]
        return torch.cat(sides, 1).amax(1)
