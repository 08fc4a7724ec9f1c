r"""UncertaintyOffData: functions of the posterior differ where there are no data.

With K draws their sample variance estimates that of the posterior at an input without bias, and

.. math::  v(f_1, \dots, f_K, x) = s^2 - \tfrac1{K - 1} \sum_k (f_k(x) - \bar f(x))^2

for the standard deviation s that is asked for. The penalty is of the estimate, :math:`E \max(0, v)`, not of the
variance: draws can be close by chance whatever the variance is, so the term goes on pushing somewhat beyond s, the less
the more draws there are, and rates of violation are those of samples (of the variance itself, see the prediction's
``epistemic``). Draws are exchangeable, so that the gradient is K times that through the first of them; the others need
no graph. Of classes, probabilities are compared; :class:`~pyrobnn.objectives.RegularizedELBO` has their mutual
information.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_int, check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.constraints.base import Constraint, Form, Function
from pyrobnn.objectives.auxiliary import Auxiliary

__all__ = ["UncertaintyOffData"]


@explained
class UncertaintyOffData(Constraint):
    """The standard deviation over draws is at least a given one, at inputs that are not data.

    Args:
        minimum: The least standard deviation s, in the units of the predictions.
        inputs: Where, as for :class:`~pyrobnn.function_space.Constraint`: a box around the data, say.
        weight: As there; a violation is one of variances.
        num_draws: Number K of draws of the posterior that are compared, at least 2; all but one run without gradients.
        form: As there.
        temperature: As there.
        name: As there.

    Raises:
        TypeError: If ``inputs`` are none; at the first step, if the guide is a point.
        ValueError: If ``minimum`` is not positive, or ``num_draws`` below 2.
    """

    name = "uncertainty_off_data"

    def __init__(
        self,
        minimum: float,
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        num_draws: int = 4,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        super().__init__(inputs, weight, form=form, temperature=temperature, name=name)
        check_positive("minimum", minimum, "standard deviation")
        check_int("num_draws", num_draws, 2)
        self.minimum, self.num_functions = minimum, num_draws

    def violation(self, functions: Sequence[Function], x: Any) -> Tensor:
        """``s²`` minus the estimated variance, of the prediction of a row that varies least ``[B]``."""
        variance = torch.stack([function(x) for function in functions]).var(0)
        return self.minimum**2 - variance.reshape(len(variance), -1).amin(1)
