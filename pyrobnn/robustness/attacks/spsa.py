r"""Attack without gradients: simultaneous perturbation stochastic approximation.

.. math::  \hat g = \frac1S \sum_s \frac{L(x + \delta v_s) - L(x - \delta v_s)}{2 \delta}\, v_s, \qquad
           v_s \in \{-1, 1\}^d

estimates the gradient from differences along random signs, so that it works where the network is not differentiable
or its gradients are masked. In the maximum norm Adam moves the inputs along the estimate; in the Euclidean norm, whose
steepest direction Adam would bend, steps follow a running mean of the estimates. Each is projected to the ball. All
inputs of a batch share the directions, so that the result for one does not depend on the others. Uesato et al.,
"Adversarial risk and the dangers of evaluating against weak attacks", 2018, with 256 to 2048 directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import column, step_length
from pyrobnn.robustness.attacks.base import Attack
from pyrobnn.robustness.attacks.losses import Loss
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["SPSA"]


@explained
@dataclass(frozen=True)
class SPSA(Attack):
    """Steps along estimates of the gradient from differences of the loss.

    It takes ``steps * (2 * directions + 1)`` queries of each input.

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed. Differences are taken a little beyond it.
        loss: What is raised.
        targeted: Lower the loss of ``y`` instead of raising it.
        steps: Number of steps.
        directions: Number of random directions in a step, each with two evaluations.
        perturbation: Length of the differences in each entry.
        step_size: Learning rate of Adam, about the change of each entry in a step, or length of a step in the
            Euclidean norm; None takes ``2.5 * epsilon / steps``.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    loss: str | Loss = "margin"
    steps: int = 50
    directions: int = 64
    perturbation: float = 0.01
    step_size: float | None = None

    uses_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int("steps", self.steps)
        check_positive_int("directions", self.directions)
        check_positive("perturbation", self.perturbation)
        step_length(self.epsilon, self.steps, self.step_size)

    def search(self, problem: Problem) -> Tensor:
        """The last step."""
        moved, average = problem.x.clone(), torch.zeros_like(problem.x)
        length = step_length(self.epsilon, self.steps, self.step_size)
        adam = torch.optim.Adam([moved], lr=length, maximize=True)
        for _ in range(self.steps):
            moved.grad = self._estimate(problem, moved)
            if self.norm == "linf":
                adam.step()
            else:
                average = 0.9 * average + 0.1 * moved.grad
                moved += length * problem.ball.steepest(average)
            moved.copy_(problem.ball.project(problem.x, moved))
            problem.objective(moved.clone())
        return problem.best

    def _estimate(self, problem: Problem, moved: Tensor) -> Tensor:
        total = torch.zeros_like(moved)
        shape = column(moved)
        for _ in range(self.directions):
            coins = torch.rand(moved[:1].shape, generator=problem.generator, device=moved.device, dtype=moved.dtype)
            direction = torch.where(coins < 0.5, -1.0, 1.0).to(moved)
            ahead, behind = (
                problem.evaluate(moved + sign * self.perturbation * direction).reshape(shape) for sign in (1, -1)
            )
            total += ((ahead - behind) / (2 * self.perturbation)).to(moved) * direction
        return total / self.directions
