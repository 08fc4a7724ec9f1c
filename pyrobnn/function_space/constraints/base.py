r"""Constraint: a term that asks something of the functions of a posterior, at inputs that need no targets.

Regularized Bayesian inference (Zhu, Chen & Xing 2014) adds to the objective a functional of the posterior,

.. math::  \min_q\; \mathrm{KL}\big[q \,\|\, p(\cdot \mid D)\big] + \Omega(q), \qquad
           \Omega(q) = N \alpha\, E_{\tilde x} E_{f \sim q}\, \ell\big(v(f, \tilde x)\big),

in nats for the whole data set. The *violation* v is how far a function is on the wrong side, in the units of the
predictions, at most 0 where the constraint holds; predictions are expected targets (class probabilities, for classes).
Either :math:`\ell(v) = \max(0, v)`, the expected violation, or :math:`\ell(v) = \sigma(v / \tau)`, a smooth form of the
probability of being violated, which it becomes as :math:`\tau \to 0`. A step takes one draw of the posterior.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_int, check_positive
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.auxiliary import Auxiliary, AuxiliaryTerm
from pyrobnn.objectives.parts import explaining_non_finite_draws
from pyrobnn.objectives.terms import Evaluation, Run

__all__ = ["Constraint", "Form", "Function", "chosen", "predictions_of"]

Form = Literal["expectation", "probability"]
"""The expected violation, or its probability."""

Function: TypeAlias = Callable[[Any], Tensor]
"""From inputs ``[B, ...]`` to expected targets ``[B, ...]`` under one function of the posterior."""


class Constraint(AuxiliaryTerm):
    """Base class of constraints; a subclass implements :meth:`violation`.

    Pass it as a term of any objective, ``ELBO(terms=[Monotone(0, inputs)])``; the same object then measures how well
    the posterior keeps it (:func:`~pyrobnn.function_space.violations`).

    Args:
        inputs: Where it is asked for: a tensor of inputs; a :class:`~pyrobnn.function_space.DataBox` or another
            function of the batch's inputs; or a loader, begun again when it ends (pairs ``(x, y)`` lose their ``y``).
        weight: Weight α relative to the objective per datum, or its schedule.
        form: ``"expectation"`` or ``"probability"``.
        temperature: τ of ``"probability"``, in the units of the predictions.
        name: Name of the term in ``history.terms``; two constraints of one objective need two names.

    Raises:
        TypeError: If ``inputs`` are none.
        ValueError: If ``weight`` is negative, ``temperature`` not positive, or ``form`` unknown.
    """

    argument: ClassVar[str] = "inputs"
    num_functions: int = 1
    """How many functions it compares."""

    def __init__(
        self,
        inputs: Tensor | Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        form: Form = "expectation",
        temperature: float = 0.01,
        name: str | None = None,
    ) -> None:
        if isinstance(inputs, Tensor):
            if not inputs.dim() or not len(inputs):
                raise ValueError(f"inputs: expected rows, [B, ...], got shape {tuple(inputs.shape)}.")
            inputs = [inputs]
        weight = schedules.resolve("weight", weight, allow_zero=True, zero_constant=True)
        super().__init__(inputs, weight)
        if form not in get_args(Form):
            raise ValueError(f"form: expected 'expectation' or 'probability', got {form!r}.")
        check_positive("temperature", temperature, "in the units of the predictions")
        if name is not None:
            if not isinstance(name, str) or not name:
                raise TypeError(f"name: expected a name for the term, got {name!r}.")
            self.name = name
        self.form: Form = form
        self.temperature = temperature

    @abstractmethod
    def violation(self, functions: Sequence[Function], x: Any) -> Tensor:
        """How far functions are on the wrong side, in the units of the predictions; at most 0 where they are right.

        Args:
            functions: :attr:`num_functions` of them, from inputs to expected targets. The first is differentiable in
                both and may be called at any inputs; others only at ``x``.
            x: Inputs ``[B, ...]``.

        Returns:
            One number for each row ``[B]``, or one for each of what is compared.
        """

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        """``N`` times the mean penalty under one draw, or under as many as are compared.

        Draws are exchangeable, so that of K the expected gradient is K times that through the first of them.

        Raises:
            TypeError: If the model is no ``SupervisedModel``, or draws are compared and the guide is a point.
            ValueError: If there are no inputs, or the constraint does not fit the network's outputs.
        """
        model, step, guide = evaluation.model, evaluation.step, evaluation.guide
        self.check_model(model)
        if self.num_functions > 1 and guide is not None and guide.facts.num_points == 1:
            raise TypeError(
                f"guide: {type(guide).__name__} is a point, whose functions do not differ; use an ensemble or a guide "
                "with a distribution."
            )
        x = self.inputs(evaluation)
        with evaluating(model):
            others: list[Function] = []
            component = None
            for _ in range(self.num_functions - 1):
                with torch.no_grad():
                    other = step.draw(None)
                    with explaining_non_finite_draws(other, self.name):
                        others.append(_fixed(predictions_of(model, other)(x)))
                component = other.component
                del other  # its memory is for the draw with gradients
            # Of three or more, all are independent: draws that avoid one of the others would not be exchangeable.
            draws = step.draw(None, avoid=component if self.num_functions == 2 else None)
            with explaining_non_finite_draws(draws, self.name):
                found = self.violation([predictions_of(model, draws), *others], x)
        penalty = self.penalty(found).mean()
        total: Tensor = model.num_data * penalty
        return total if not others else self.num_functions * total - len(others) * total.detach()

    def penalty(self, violation: Tensor) -> Tensor:
        """What is minimized, of violations of any shape."""
        if self.form == "probability":
            return torch.sigmoid(violation / self.temperature)
        return violation.clamp_min(0.0)

    def check_model(self, model: Any) -> None:
        """Refuses models whose predictions are not known.

        Raises:
            TypeError: If it is no ``SupervisedModel``.
        """
        if not isinstance(model, SupervisedModel):
            raise TypeError(
                f"model: {type(self).__name__} constrains predictions; it needs a SupervisedModel, got "
                f"{type(model).__name__}."
            )


def predictions_of(model: SupervisedModel, draws: Any) -> Function:
    """The expected targets under a draw, as a function of inputs; running statistics are left alone."""

    def function(x: Any) -> Tensor:
        with draws.running(model, update=False):
            return model.likelihood.expectation(widened(model.predictive(x)))

    return function


def _fixed(values: Tensor) -> Function:
    return lambda _: values


def chosen(predictions: Tensor, output: int | None, who: str) -> Tensor:
    """One number for each row ``[B]``: that of ``output``, or the only one.

    Raises:
        ValueError: If there are several and none is named, or there is no such one.
    """
    flat = predictions.reshape(len(predictions), -1)
    if output is None:
        if flat.shape[1] != 1:
            raise ValueError(
                f"output: predictions have {flat.shape[1]} numbers for each row; say which one {who} is about."
            )
        return flat[:, 0]
    check_int("output", output, 0)
    if output >= flat.shape[1]:
        raise ValueError(f"output: expected an index below {flat.shape[1]}, the number of predictions, got {output}.")
    return flat[:, output]
