r"""The momentum iterative method: steps along a decaying sum of normalized gradients.

.. math::  g_t = \mu\, g_{t-1} + \frac{\nabla_x L(x_t)}{\mathrm{mean} |\nabla_x L(x_t)|}, \qquad
           x_{t+1} = \Pi\big(x_t + \alpha\, s(g_t)\big)

with s the sign in the maximum norm, and the normalized vector in the Euclidean one. Dong et al., "Boosting adversarial
attacks with momentum", 2018, divide by the sum instead of the mean, which changes no step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import column
from pyrobnn.robustness.attacks.pgd import PGD
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["MIM"]


@explained
@dataclass(frozen=True)
class MIM(PGD):
    """PGD with momentum, from the center of the ball.

    ::

        adversarial = MIM(epsilon=0.3, clip=(0.0, 1.0))(model, guide, x, y)

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: What is raised.
        targeted: Lower the loss of ``y`` instead of raising it.
        steps: Number of steps.
        step_size: Length of a step; None takes ``2.5 * epsilon / steps``.
        random_start: Begin at a uniform point of the ball instead of its center.
        restarts: Number of starts.
        momentum: Decay of earlier gradients.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    random_start: bool = False
    momentum: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_non_negative("momentum", self.momentum)

    def ascend(self, problem: Problem, moved: Tensor) -> Tensor:
        """All steps of one start."""
        direction, project = torch.zeros_like(moved), problem.ball.projector(problem.x)
        for _ in range(self.steps):
            _, gradient = problem.objective_and_gradient(moved)
            size = gradient.reshape(len(gradient), -1).abs().mean(1).reshape(column(gradient))
            direction = self.momentum * direction + gradient / torch.where(size > 0, size, 1.0)
            moved = project(moved + self.length * problem.ball.steepest(direction))
        return moved
