r"""TRADES: the loss at inputs as they are, and the divergence of predictions around them.

.. math::  L = -\log p(y \mid x, w) + \beta \max_{x' \in S} \mathrm{KL}\big(p(\cdot \mid x, w) \,\|\, p(\cdot \mid x', w)\big)

for each datum: accuracy and stability are separate, and β trades one for the other. The inner maximization needs no
label; it starts beside the input, where the gradient of the divergence is 0. Zhang, Yu, Jiao, Xing, El Ghaoui & Jordan,
*Theoretically Principled Trade-off between Robustness and Accuracy* (2019).
"""  # noqa: E501 (one formula)

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_non_negative, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.objectives.terms import Evaluation, Run, Term, run_model
from pyrobnn.robustness.attacks.balls import Clip, Norm, ball_of, step_length
from pyrobnn.robustness.training.attacked import attacking, tensor_inputs
from pyrobnn.robustness.training.gradient_steps import ascended
from pyrobnn.robustness.training.objective import over_data

__all__ = ["TRADES"]

_START = 1e-3  # standard deviation of the first move


@explained
class TRADES(Term):
    """A term of any objective, ``ELBO(terms=[TRADES(0.1)])``, for any guide, under the draws of the step.

    Both runs of the network that the divergence compares are in training mode; running statistics follow the clean one.

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        weight: Weight β relative to the loss per datum, or its schedule.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed; None for no limits.
        steps: Steps of the inner maximization.
        step_size: Length of a step; None takes ``2.5 * epsilon / steps``.

    Raises:
        TypeError: At the first step, if the model has no likelihood of classes, or inputs are no tensor.
        ValueError: If an argument is out of its range; at the first step, if inputs are beyond ``clip``.
    """

    name = "trades"

    def __init__(
        self,
        epsilon: float,
        weight: schedules.Schedule = 6.0,
        *,
        norm: Norm = "linf",
        clip: Clip = None,
        steps: int = 10,
        step_size: float | None = None,
    ) -> None:
        super().__init__(schedules.resolve("weight", weight, allow_zero=True, zero_constant=True))
        check_non_negative("epsilon", epsilon, "radius")
        check_positive_int("steps", steps)
        self.ball, self.steps = ball_of(norm, epsilon, clip), steps
        self.step_size = step_length(epsilon, steps, step_size)

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        """N times the mean divergence under the draw.

        Raises:
            TypeError: If the model has no likelihood of classes, or inputs are no tensor.
            ValueError: If inputs are beyond ``clip``.
        """
        run, model = runs[0], evaluation.model
        moved = self.perturbed(run, evaluation)
        args, draws = (moved, *run.args[1:]), run.draws.settled()
        other = run_model(model, evaluation.step, draws, args, evaluation.kwargs, update=False, scored=False)
        p, q = (_log_probabilities(model.likelihood, r.outputs) for r in (run, other))
        return over_data(_divergences(p, q), run, evaluation)

    def perturbed(self, run: Run, evaluation: Evaluation) -> Tensor:
        """Inputs of the run, moved to where predictions under its draw differ most."""
        x, _ = tensor_inputs(run.args)
        x = x.detach()
        with attacking(evaluation.model, run.draws) as network:
            likelihood = network.model.likelihood
            if not isinstance(likelihood, ClassLikelihood):
                raise TypeError(
                    f"model: TRADES compares class probabilities, but the likelihood is {type(likelihood).__name__}."
                )
            self.ball.check_range(x)
            if not self.ball.epsilon:
                return x
            p = _log_probabilities(likelihood, network.outputs(x)).detach()
            start = self.ball.project(x, x + _START * torch.randn_like(x))
            gain = lambda at: _divergences(p, _log_probabilities(likelihood, network.outputs(at)))  # noqa: E731
            return ascended(gain, x, start, self.ball, self.steps, self.step_size)


def _log_probabilities(likelihood: ClassLikelihood, outputs: Tensor) -> Tensor:
    return likelihood.log_probabilities(widened(outputs))


def _divergences(p: Tensor, q: Tensor) -> Tensor:
    """KL of each row from log probabilities ``[B, ..., C]``; positions of a row add up."""
    return (p.exp() * (p - q)).flatten(1).sum(1)
