r"""ExpertAgreement: predictions are near a known function g, :math:`v(f, x) = \|f(x) - g(x)\|_\infty - t`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.constraints.base import Constraint, Form, Function
from pyrobnn.objectives.auxiliary import Auxiliary

__all__ = ["ExpertAgreement"]


@explained
class ExpertAgreement(Constraint):
    """Predictions are within a tolerance of an expert's: a formula, a rule, an older model.

    Args:
        expert: From a batch of inputs to predictions ``[B, ...]``, of the shape of the network's; NaN where it says
            nothing.
        inputs: Where, as for :class:`~pyrobnn.function_space.Constraint`.
        weight: As there.
        tolerance: The largest difference that is allowed, in the units of the predictions.
        form: As there.
        temperature: As there.
        name: As there.

    Raises:
        TypeError: If ``inputs`` are none, or ``expert`` is no function.
        ValueError: If ``tolerance`` is negative; at the first step, if the expert's predictions have another shape.
    """

    name = "expert_agreement"

    def __init__(
        self,
        expert: Callable[[Any], Tensor],
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        tolerance: float = 0.0,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        super().__init__(inputs, weight, form=form, temperature=temperature, name=name)
        if not callable(expert) or isinstance(expert, type):
            raise TypeError(f"expert: expected a function of a batch of inputs, got {expert!r}.")
        check_non_negative("tolerance", tolerance, "difference of predictions")
        self.expert, self.tolerance = expert, tolerance

    def violation(self, functions: Sequence[Function], x: Any) -> Tensor:
        """The largest difference of a row's predictions, above the tolerance ``[B]``."""
        (function,) = functions
        found = function(x)
        with torch.no_grad():
            known = self.expert(x)
        if not isinstance(known, Tensor) or known.shape != found.shape:
            what = f"shape {list(known.shape)}" if isinstance(known, Tensor) else f"a {type(known).__name__}"
            raise ValueError(f"expert: expected predictions of shape {list(found.shape)}, got {what}.")
        silent = known.isnan()
        away = (found - torch.where(silent, 0.0, known).to(found)).abs()
        away = torch.where(silent, 0.0, away)
        return away.reshape(len(found), -1).amax(1) - self.tolerance
