r"""The fast gradient sign method: one step of the length of the radius.

.. math::  x' = \Pi\big(x + \epsilon\, \mathrm{sign} \nabla_x L(x)\big)

In the Euclidean norm the step is along the normalized gradient. For a model that is linear in its inputs, it is the
worst case. Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.base import Attack
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["FGSM"]


@explained
@dataclass(frozen=True)
class FGSM(Attack):
    """One step along the steepest direction, to the boundary of the ball.

    ::

        adversarial = FGSM(epsilon=0.3, clip=(0.0, 1.0))(model, guide, x, y)

    Where that step lowers the loss, which is not linear, the input is returned as it was.

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: What is raised.
        targeted: Lower the loss of ``y`` instead of raising it.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    @property
    def ascent_steps(self) -> int:
        """One."""
        return 1

    def search(self, problem: Problem) -> Tensor:
        """The point at the boundary."""
        _, gradient = problem.objective_and_gradient(problem.x)
        return problem.ball.project(problem.x, problem.x + self.epsilon * problem.ball.steepest(gradient))
