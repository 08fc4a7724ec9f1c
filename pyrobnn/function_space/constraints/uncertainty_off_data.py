r"""UncertaintyOffData: functions of the posterior differ where there are no data.

With two draws :math:`f_a, f_b` the variance at an input is estimated without bias by half their squared difference, and

.. math::  v(f_a, f_b, x) = s^2 - \tfrac12 (f_a(x) - f_b(x))^2

for the standard deviation s that is asked for. A pair can be close by chance whatever the variance is, so that even
where it is s the rate of violations is about two thirds: the term goes on pushing, and the rate measures pairs, not the
variance (that is the prediction's ``epistemic``). The two are exchangeable, so that the gradient is twice that through
the first of them. Of classes, probabilities are compared; :class:`~pyrobnn.objectives.RegularizedELBO` has their mutual
information.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_positive
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
        form: As there.
        temperature: As there.
        name: As there.

    Raises:
        TypeError: If ``inputs`` are none; at the first step, if the guide is a point.
        ValueError: If ``minimum`` is not positive.
    """

    name = "uncertainty_off_data"
    num_functions = 2

    def __init__(
        self,
        minimum: float,
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        super().__init__(inputs, weight, form=form, temperature=temperature, name=name)
        check_positive("minimum", minimum, "standard deviation")
        self.minimum = minimum

    def violation(self, functions: Sequence[Function], x: Any) -> Tensor:
        """``s²`` minus the estimated variance, of the prediction of a row that varies least ``[B]``."""
        first, second = functions
        variance = 0.5 * (first(x) - second(x)).square()
        return self.minimum**2 - variance.reshape(len(variance), -1).amin(1)
