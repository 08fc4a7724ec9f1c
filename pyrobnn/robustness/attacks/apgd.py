r"""Auto-PGD: projected gradient ascent with momentum, whose step size is halved where it no longer helps.

.. math::  z_{t+1} = \Pi(x_t + \eta_t\, s(\nabla L(x_t))), \qquad
           x_{t+1} = \Pi\big(x_t + \alpha (z_{t+1} - x_t) + (1 - \alpha)(x_t - x_{t-1})\big), \quad \alpha = 0.75

from :math:`\eta_0 = 2\epsilon`. At checkpoints after 22 % of the steps, then in intervals that become shorter by 3 % of
them, down to 6 %, an input's step is halved and the search goes back to its best point, if (1) the loss rose in fewer
than 75 % of the steps since the last checkpoint, or (2) the step was not halved there and the best loss has not changed
since. Each input has a step of its own; but for the number of steps there is nothing to be tuned. Croce & Hein,
"Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int, check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import column
from pyrobnn.robustness.attacks.base import Attack
from pyrobnn.robustness.attacks.dlr import TargetedDLR
from pyrobnn.robustness.attacks.per_class import PerClassAttack
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["APGD", "APGDTargeted", "adaptive_ascent"]

_MOMENTUM = 0.75


@explained
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD; the best iterate of all restarts is returned.

    ::

        adversarial = APGD(epsilon=0.3, clip=(0.0, 1.0), loss=DLR())(model, guide, x, y)

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: What is raised; APGD-CE and APGD-DLR of the paper are ``"cross_entropy"`` and
            :class:`~pyrobnn.robustness.DLR`.
        targeted: Lower the loss of ``y`` instead of raising it.
        steps: Number of steps.
        restarts: Number of random starts.
        rho: Share of steps that must raise the loss.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    steps: int = 100
    restarts: int = 1
    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int("steps", self.steps)
        check_positive_int("restarts", self.restarts)
        check_probability("rho", self.rho)

    @property
    def label(self) -> str:
        """With the loss, as in the paper."""
        loss = {"cross_entropy": "CE"}.get(str(self.loss), str(self.loss).removesuffix("()"))
        return f"APGD-{loss}"

    def search(self, problem: Problem) -> Tensor:
        """The last iterate of the last restart, evaluated."""
        for restart in range(self.restarts):
            adaptive_ascent(problem, problem.start(restart), self.steps, self.rho)
        return problem.best


@explained
@dataclass(frozen=True)
class APGDTargeted(PerClassAttack):
    """Auto-PGD toward each of the most probable other classes in turn (APGD-T of the paper).

    The result is the input with the largest margin of all; inputs that are misclassified by then are left alone.

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: ``"margin"``, by which results are compared; the search raises the targeted DLR.
        targeted: False; the classes to be reached are the attack's own.
        steps: Number of steps toward each class.
        num_classes: How many classes, in the order of their probability at the clean input; at most as many as there
            are others.
        rho: Share of steps that must raise the loss.

    Raises:
        TypeError: If an option is of the wrong kind; at the call, if the likelihood has no classes.
        ValueError: If one is out of its range; at the call, if there are fewer than four classes, or several labels
            for an input.
    """

    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability("rho", self.rho)

    @property
    def label(self) -> str:
        """As in the paper."""
        return "APGD-T"

    def pair_loss(self) -> TargetedDLR:
        """The targeted DLR."""
        return TargetedDLR()

    def toward(self, problem: Problem, rank: int) -> Tensor:
        """The best iterate from a start of its own."""
        adaptive_ascent(problem, problem.start(rank), self.steps, self.rho)
        return problem.best


def adaptive_ascent(problem: Problem, start: Tensor, steps: int, rho: float = 0.75) -> None:
    """Evaluates the iterates from a start; the problem remembers the best.

    Args:
        problem: Inputs, ball and objective.
        start: Points of the ball ``[N, ...]``.
        steps: Number of steps, of one gradient each; the last iterate is evaluated besides.
        rho: Share of steps that must raise the objective.
    """
    ball, x = problem.ball, problem.x
    project = ball.projector(x)
    shape = column(x)
    value, gradient = problem.objective_and_gradient(start)
    best, best_value, best_gradient = start, value, gradient
    size = torch.full_like(value, 2.0 * ball.epsilon)
    rises, was_halved, checked = torch.zeros_like(value), torch.ones_like(value, dtype=torch.bool), best_value
    interval, since = max(int(0.22 * steps), 1), 0
    shortest, shortening = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    before, current = start, start
    for step in range(steps):
        momentum = 1.0 if step == 0 else _MOMENTUM
        moved = project(current + size.to(x.dtype).reshape(shape) * ball.steepest(gradient))
        moved = current + momentum * (moved - current) + (1.0 - momentum) * (current - before)
        before, current = current, project(moved)
        if step == steps - 1:
            problem.objective(current)
            return
        last, (value, gradient) = value, problem.objective_and_gradient(current)
        rises += value > last
        better = value > best_value
        best = torch.where(better.reshape(shape), current, best)
        best_gradient = torch.where(better.reshape(shape), gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        since += 1
        if since < interval:
            continue
        halved = (rises <= rho * interval) | (~was_halved & (checked >= best_value))
        size = torch.where(halved, 0.5 * size, size)
        current = torch.where(halved.reshape(shape), best, current)
        gradient = torch.where(halved.reshape(shape), best_gradient, gradient)
        value = torch.where(halved, best_value, value)
        was_halved, checked, rises = halved, best_value, torch.zeros_like(value)
        interval, since = max(interval - shortening, shortest), 0
