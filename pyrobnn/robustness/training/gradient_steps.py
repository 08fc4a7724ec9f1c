r"""FGSM and PGD as inner players: steps of fixed length along the steepest direction.

.. math::  x_{t+1} = \Pi\big(x_t + \alpha\, s(\nabla_x L(x_t))\big)

with s the sign in the maximum norm, and the normalized gradient in the Euclidean one. Unlike the attacks of
:mod:`pyrobnn.robustness.attacks`, these see the one network of a training step, and keep the last iterate, not the best
one. Training with one step (Goodfellow, Shlens & Szegedy 2015) may end in a network that only this step cannot fool; a
random start (Wong, Rice & Kolter 2020) makes that rarer. Several steps (Madry et al. 2018) are the standard.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import Ball, Clip, Norm, step_length
from pyrobnn.robustness.training.attacked import AttackedNetwork
from pyrobnn.robustness.training.perturbation import Perturbation

__all__ = ["FastGradient", "ProjectedGradient", "ascended"]


@explained
class ProjectedGradient(Perturbation):
    """PGD: projected steps along the steepest direction.

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed; None for no limits.
        steps: Number of steps; each costs a forward and a backward pass of the network.
        step_size: Length of a step; None takes ``2.5 * epsilon / steps``, with which any point of the ball is in reach.
        random_start: Begin at a uniform point of the ball instead of its center.

    Raises:
        TypeError: If ``random_start`` is no bool.
        ValueError: If another argument is out of its range.
    """

    def __init__(
        self,
        epsilon: float,
        *,
        norm: Norm = "linf",
        clip: Clip = None,
        steps: int = 7,
        step_size: float | None = None,
        random_start: bool = True,
    ) -> None:
        super().__init__(epsilon, clip, norm)
        check_positive_int("steps", steps)
        if not isinstance(random_start, bool):
            raise TypeError(f"random_start: expected True or False, got {random_start!r}.")
        self.steps, self.random_start = steps, random_start
        self.step_size = step_length(epsilon, steps, step_size)

    def perturbed(self, network: AttackedNetwork, x: Tensor, y: Tensor, *, keep: bool) -> Tensor:
        """The last iterate."""
        start = self.ball.random_start(x) if self.random_start else x
        return ascended(lambda moved: network.losses(moved, y), x, start, self.ball, self.steps, self.step_size)


@explained
class FastGradient(ProjectedGradient):
    """FGSM: one step along the steepest direction.

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed; None for no limits.
        random_start: Begin at a uniform point of the ball instead of its center.
        step_size: Length of the step; None takes the radius from the center, and 1.25 times that from a random start.

    Raises:
        TypeError: If ``random_start`` is no bool.
        ValueError: If another argument is out of its range.
    """

    def __init__(
        self,
        epsilon: float,
        *,
        norm: Norm = "linf",
        clip: Clip = None,
        random_start: bool = False,
        step_size: float | None = None,
    ) -> None:
        length = (1.25 if random_start else 1.0) * epsilon if step_size is None and epsilon > 0 else step_size
        super().__init__(epsilon, norm=norm, clip=clip, steps=1, step_size=length, random_start=random_start)


def ascended(
    gain: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, ball: Ball, steps: int, step_size: float
) -> Tensor:
    """The last of projected steps along the steepest direction of a function of inputs.

    Args:
        gain: From inputs to a tensor whose sum is raised.
        x: Centers of the balls ``[B, ...]``.
        start: Where to begin, in the balls.
        ball: The ball and the range.
        steps: Number of steps.
        step_size: Length of a step in the ball's norm.
    """
    moved = start
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (slope,) = torch.autograd.grad(gain(moved).sum(), moved)
        moved = ball.project(x, moved.detach() + step_size * ball.steepest(slope))
    return moved.detach()
