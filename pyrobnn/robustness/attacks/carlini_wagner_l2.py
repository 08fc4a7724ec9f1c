r"""The attack of least Euclidean distance of Carlini & Wagner.

.. math::  \min_w \|x'(w) - x\|_2^2 + c \max\big(-m(x'(w)), -\kappa\big), \qquad
           x'(w) = \tfrac{a + b}{2} + \tfrac{b - a}{2} \tanh w,

with the margin :math:`m = \max_{j \ne y} \log \bar p_j - \log \bar p_y` (of a target class its negative), the range
[a, b], and for each input the least weight c that has success, found by bisection. Adam minimizes over w, which keeps
inputs in the range; without a range it minimizes over the inputs themselves. The closest success of all steps is then
moved towards the input as long as it is one, which the paper does not do. Carlini & Wagner, "Towards evaluating the
robustness of neural networks", 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative, check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import Clip, column
from pyrobnn.robustness.attacks.losses import Loss
from pyrobnn.robustness.attacks.minimal import Closest, MinimalNormAttack, WeightSearch
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["CarliniWagnerL2"]


@explained
@dataclass(frozen=True)
class CarliniWagnerL2(MinimalNormAttack):
    """The closest input of another prediction, by Adam and a bisection of the loss's weight.

    ::

        adversarial = CarliniWagnerL2(clip=(0.0, 1.0))(model, guide, x, y)

    Args:
        epsilon: Radius of the ball; ``math.inf``: none. Successes beyond it are projected to it.
        norm: ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: ``"margin"``, or another loss of classes that is positive for a success.
        targeted: Reach ``y`` instead of leaving it.
        kappa: Confidence: the margin, in log odds, that a success must have.
        steps: Steps of Adam for each weight.
        step_size: Its learning rate.
        initial_weight: The first weight c.
        searches: Number of weights that are tried.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    loss: str | Loss = "margin"
    kappa: float = 0.0
    steps: int = 200
    step_size: float = 0.01
    initial_weight: float = 1e-3
    searches: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_non_negative("kappa", self.kappa)
        check_positive_int("steps", self.steps)
        check_positive("step_size", self.step_size)
        check_positive("initial_weight", self.initial_weight)
        check_positive_int("searches", self.searches)

    @property
    def label(self) -> str:
        """As in tables."""
        return "C&W-l2"

    def search(self, problem: Problem) -> Tensor:
        """The closest successes."""
        closest = Closest(problem)
        closest.add(problem.x, self._is_success(problem.objective(problem.x)))
        weights = WeightSearch(self.initial_weight, closest.distance)
        for _ in range(self.searches):
            weights.update(self._minimized(problem, closest, weights.weight))
        closest.shrink(lambda moved: self._is_success(problem.objective(moved)))
        return closest.projected()

    def _is_success(self, margin: Tensor) -> Tensor:
        return (margin > 0) & (margin >= self.kappa)

    def _minimized(self, problem: Problem, closest: Closest, weight: Tensor) -> Tensor:
        """Whether there was a success at this weight, ``[N]``."""
        place = _Tanh(self.clip)
        variable = place.inverse(problem.x)
        adam = torch.optim.Adam([variable], lr=self.step_size)
        succeeded = torch.zeros_like(weight, dtype=torch.bool)
        for _ in range(self.steps):
            moved = place(variable)
            margin, gradient = problem.objective_and_gradient(moved)
            success = self._is_success(margin)
            closest.add(moved, success)
            succeeded |= success
            active = (margin <= self.kappa) * weight
            slope = 2 * (moved - problem.x) - active.reshape(column(moved)).to(moved) * gradient
            variable.grad = slope * place.derivative(moved)
            adam.step()
        return succeeded


class _Tanh:
    """Inputs of a range as a function of numbers without limits; the identity without a range.

    Args:
        clip: The range.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        if clip is not None:
            self.middle, self.half = (clip[0] + clip[1]) / 2, (clip[1] - clip[0]) / 2

    def __call__(self, variable: Tensor) -> Tensor:
        return variable.clone() if self.clip is None else self.middle + self.half * variable.tanh()

    def inverse(self, x: Tensor) -> Tensor:
        """The numbers of inputs; those at the ends of the range are taken a little inside."""
        return (
            x.clone() if self.clip is None else torch.atanh(((x - self.middle) / self.half).clamp(-0.999999, 0.999999))
        )

    def derivative(self, moved: Tensor) -> Tensor | float:
        """Of each input by its number."""
        return 1.0 if self.clip is None else self.half * (1 - ((moved - self.middle) / self.half) ** 2)
