r"""The margin of Carlini & Wagner in a ball: projected steps that raise it up to a confidence.

.. math::  x_{t+1} = \Pi\big(x_t + \alpha\, s(\nabla_x \min(m(x_t), \kappa))\big), \qquad
           m(x) = \max_{j \ne y} \log \bar p_j(x) - \log \bar p_y(x)

The margin keeps its gradient where the softmax is saturated. This is the "C&W" of tables in the maximum norm (Madry et
al. 2018, with 30 steps and :math:`\kappa = 50`); the attack of least distance is
:class:`~pyrobnn.robustness.CarliniWagnerL2`. Carlini & Wagner, "Towards evaluating the robustness of neural networks",
2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import column
from pyrobnn.robustness.attacks.losses import Loss
from pyrobnn.robustness.attacks.pgd import PGD
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["CarliniWagnerMargin"]


@explained
@dataclass(frozen=True)
class CarliniWagnerMargin(PGD):
    """PGD on the margin, whose steps end for an input once the margin is above ``kappa``.

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: ``"margin"``, or another loss of classes.
        targeted: Reach ``y`` instead of leaving it.
        steps: Number of steps.
        step_size: Length of a step; None takes ``2.5 * epsilon / steps``.
        random_start: Begin at a uniform point of the ball instead of its center.
        restarts: Number of starts.
        kappa: Confidence: the margin, in log odds, beyond which no more harm is sought.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    loss: str | Loss = "margin"
    steps: int = 30
    kappa: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_non_negative("kappa", self.kappa)

    @property
    def label(self) -> str:
        """As in tables."""
        return f"C&W-{self.steps}"

    def ascend(self, problem: Problem, moved: Tensor) -> Tensor:
        """All steps of one start."""
        for _ in range(self.steps):
            margin, gradient = problem.objective_and_gradient(moved)
            done = (margin > self.kappa).reshape(column(moved))
            step = moved + self.length * problem.ball.steepest(gradient)
            moved = torch.where(done, moved, problem.ball.project(problem.x, step))
            if bool(done.all()):
                break
        return moved
