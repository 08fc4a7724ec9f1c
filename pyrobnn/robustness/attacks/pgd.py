r"""Projected gradient ascent: repeated steps, each followed by a projection.

.. math::  x_{t+1} = \Pi\big(x_t + \alpha\, s(\nabla_x L(x_t))\big)

with s the sign in the maximum norm, and the normalized gradient in the Euclidean one. Madry et al., "Towards deep
learning models resistant to adversarial attacks", 2018; without a random start it is the basic iterative method of
Kurakin, Goodfellow & Bengio, "Adversarial examples in the physical world", 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import step_length
from pyrobnn.robustness.attacks.base import Attack
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["PGD"]


@explained
@dataclass(frozen=True)
class PGD(Attack):
    """Steps along the steepest direction, projected to the ball; the best iterate of all restarts is returned.

    ::

        adversarial = PGD(epsilon=0.3, clip=(0.0, 1.0), steps=20)(model, guide, x, y)

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: What is raised.
        targeted: Lower the loss of ``y`` instead of raising it.
        steps: Number of steps.
        step_size: Length of a step; None takes ``2.5 * epsilon / steps``, with which any point of the ball is in reach.
        random_start: Begin at a uniform point of the ball instead of its center.
        restarts: Number of starts.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range, or there are restarts without random starts.
    """

    steps: int = 20
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int("steps", self.steps)
        check_positive_int("restarts", self.restarts)
        step_length(self.epsilon, self.steps, self.step_size)
        if not isinstance(self.random_start, bool):
            raise TypeError(f"random_start: expected True or False, got {self.random_start!r}.")
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts: without random_start, all of them would be the same; leave it at 1.")

    @property
    def label(self) -> str:
        """With the number of steps, as usual."""
        return f"{type(self).__name__}-{self.steps}"

    @property
    def ascent_steps(self) -> int:
        """All of them."""
        return self.steps

    @property
    def length(self) -> float:
        """Length of a step."""
        return step_length(self.epsilon, self.steps, self.step_size)

    def search(self, problem: Problem) -> Tensor:
        """The last iterate of the last restart."""
        moved = problem.x
        for restart in range(self.restarts):
            if restart:
                problem.objective(moved)
            moved = self.ascend(problem, problem.start(restart) if self.random_start else problem.x)
        return moved

    def ascend(self, problem: Problem, moved: Tensor) -> Tensor:
        """All steps of one start."""
        step = problem.ball.stepper(problem.x, self.length)
        for _ in range(self.steps):
            _, gradient = problem.objective_and_gradient(moved)
            moved = step(moved, gradient)
        return moved
