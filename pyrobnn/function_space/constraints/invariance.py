r"""Invariance: predictions do not change under a transformation, :math:`v(f, x) = \|f(x) - f(T x)\|_\infty - t`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.constraints.base import Constraint, Form, Function
from pyrobnn.objectives.auxiliary import Auxiliary

__all__ = ["Invariance"]


@explained
class Invariance(Constraint):
    """A symmetry: an input and its image have one prediction.

    Args:
        transform: From a batch of inputs to their images, of the same shape (``torch.neg``, a flip, a rotation).
        inputs: Where, as for :class:`~pyrobnn.function_space.Constraint`.
        weight: As there.
        tolerance: The largest difference that is allowed, in the units of the predictions.
        form: As there.
        temperature: As there.
        name: As there.

    Raises:
        TypeError: If ``inputs`` are none, or ``transform`` is no function.
        ValueError: If ``tolerance`` is negative; at the first step, if images have another number of rows.
    """

    name = "invariance"

    def __init__(
        self,
        transform: Callable[[Any], Any],
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        tolerance: float = 0.0,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        super().__init__(inputs, weight, form=form, temperature=temperature, name=name)
        if not callable(transform) or isinstance(transform, type):
            raise TypeError(f"transform: expected a function of a batch of inputs, got {transform!r}.")
        check_non_negative("tolerance", tolerance, "difference of predictions")
        self.transform, self.tolerance = transform, tolerance

    def violation(self, functions: Sequence[Function], x: Any) -> Tensor:
        """The largest difference of a row's predictions, above the tolerance ``[B]``."""
        (function,) = functions
        here, there = function(x), function(self.transform(x))
        if here.shape != there.shape:
            raise ValueError(
                f"transform: predictions have shape {list(here.shape)}, those of the images {list(there.shape)}; it "
                "must keep the rows."
            )
        return (here - there).abs().reshape(len(here), -1).amax(1) - self.tolerance
