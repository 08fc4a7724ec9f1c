r"""DerivativeSign, Monotone: the sign of a derivative by one input is known.

.. math::  v(f, x) = -s\, \partial_i^k f(x), \qquad s = \pm 1,\; k = 1, 2,

by differentiation of the network, or with differences of a stated width, which also serve networks that are piecewise
linear (k = 2) or not differentiable: :math:`f(x + h e_i) - f(x)` and :math:`f(x + h e_i) - 2 f(x) + f(x - h e_i)`,
not divided by the width, so that a violation is one of predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_int, check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.constraints.base import Constraint, Form, Function, chosen
from pyrobnn.objectives.auxiliary import Auxiliary

__all__ = ["DerivativeSign", "Monotone"]


@explained
class DerivativeSign(Constraint):
    """The first or second derivative by an input has a known sign.

    Args:
        input: Index of the input, in the flattened row.
        sign: ``"positive"`` or ``"negative"`` (zero is allowed).
        inputs: Where, as for :class:`~pyrobnn.function_space.Constraint`; one tensor of floating-point numbers.
        order: 1, or 2 for convex (``"positive"``) and concave functions.
        step: None for the derivative itself; a width h, in the units of the input, for differences.
        output: Which prediction (class), if there are several.
        weight: As there.
        form: As there.
        temperature: As there.
        name: As there.

    Raises:
        TypeError: If ``inputs`` are none.
        ValueError: If an argument is out of range; at the first step, if there is no such input or output.
    """

    name = "derivative_sign"

    def __init__(
        self,
        input: int,
        sign: Literal["positive", "negative"],
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        order: int = 1,
        step: float | None = None,
        output: int | None = None,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        super().__init__(inputs, weight, form=form, temperature=temperature, name=name)
        check_int("input", input, 0)
        if sign not in ("positive", "negative"):
            raise ValueError(f"sign: expected 'positive' or 'negative', got {sign!r}.")
        if isinstance(order, bool) or order not in (1, 2):
            raise ValueError(f"order: expected 1 or 2, got {order!r}.")
        if step is not None:
            check_positive("step", step, "width in the units of the input")
        if output is not None:
            check_int("output", output, 0)
        self.input, self.order, self.step, self.output = input, order, step, output
        self.direction = 1.0 if sign == "positive" else -1.0

    def violation(self, functions: Sequence[Function], x: Any) -> Tensor:
        """Minus the derivative times its sign ``[B]``."""
        (function,) = functions
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
            raise ValueError(
                f"inputs: {type(self).__name__} needs one tensor of floating-point inputs [B, ...], got "
                f"{f'{x.dtype} of shape {tuple(x.shape)}' if isinstance(x, Tensor) else type(x).__name__}."
            )
        if self.input >= x[0].numel():
            raise ValueError(f"input: expected an index below {x[0].numel()}, the inputs of a row, got {self.input}.")
        found = self._differences(function, x) if self.step is not None else self._derivative(function, x)
        return -self.direction * found

    def _differences(self, function: Function, x: Tensor) -> Tensor:
        width = torch.zeros_like(x[0]).flatten()
        width[self.input] = float(self.step or 0.0)
        width = width.reshape(x.shape[1:])
        here, above = self._chosen(function(x)), self._chosen(function(x + width))
        if self.order == 1:
            return above - here
        return above - 2.0 * here + self._chosen(function(x - width))

    def _derivative(self, function: Function, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            slope = self._slope(self._chosen(function(leaf)), leaf)
            if self.order == 1:
                return slope
            found = self._slope(slope, leaf)
        if not bool(found.any()) and self._bends(function, leaf, slope):
            raise ValueError(
                "step: the second derivative is zero everywhere, although the first one varies, as that of a piecewise "
                "linear network (ReLU) does; pass the width of a difference, step=0.1, say."
            )
        return found

    def _bends(self, function: Function, leaf: Tensor, slope: Tensor) -> bool:
        """Whether slopes change when the input moves by as much as it varies over the rows; linear ones do not."""
        column = leaf.detach().flatten(1)[:, self.input]
        width = float(column.max() - column.min()) or max(1.0, float(column.abs().max()))
        for sign in (1.0, -1.0):
            moved = leaf.detach().clone()
            moved.view(len(moved), -1)[:, self.input] += sign * width
            moved.requires_grad_()
            if not torch.allclose(self._slope(self._chosen(function(moved)), moved), slope, rtol=1e-3):
                return True
        return False

    def _slope(self, values: Tensor, leaf: Tensor) -> Tensor:
        """The derivative of each row's value by the input ``[B]``; rows do not see each other in evaluation mode."""
        if not values.requires_grad:
            return torch.zeros_like(values)
        (slopes,) = torch.autograd.grad(
            values.sum(), leaf, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return slopes.flatten(1)[:, self.input]

    def _chosen(self, predictions: Tensor) -> Tensor:
        return chosen(predictions, self.output, type(self).__name__)


@explained
class Monotone(DerivativeSign):
    """Predictions do not fall, or do not rise, with an input.

    Args:
        input: Index of the input, in the flattened row.
        inputs: Where, as for :class:`~pyrobnn.function_space.Constraint`.
        weight: As there.
        increasing: Whether they do not fall.
        step: None for the derivative; a width, in the units of the input, for differences.
        output: Which prediction (class), if there are several.
        form: As there.
        temperature: As there.
        name: As there.

    Raises:
        TypeError: If ``inputs`` are none.
        ValueError: If an argument is out of range; at the first step, if there is no such input or output.
    """

    name = "monotone"

    def __init__(
        self,
        input: int,
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        increasing: bool = True,
        step: float | None = None,
        output: int | None = None,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        if not isinstance(increasing, bool):
            raise TypeError(f"increasing: expected True or False, got {increasing!r}.")
        super().__init__(
            input,
            "positive" if increasing else "negative",
            inputs,
            weight,
            step=step,
            output=output,
            form=form,
            temperature=temperature,
            name=name,
        )
