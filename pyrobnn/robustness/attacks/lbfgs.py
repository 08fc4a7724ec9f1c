r"""The first attack: the closest input that is given a target class, by L-BFGS in the box of the range.

.. math::  \min_{x'} \|x' - x\|_2^2 - c\, \log \bar p(y_t \mid x'), \qquad a \le x' \le b

for each input the least weight c that has success, found by bisection. All inputs of a batch are one problem of
L-BFGS-B, whose objective is a sum over them, so that they share its line searches. Successes are then moved towards the
input as long as they are some. Szegedy et al., "Intriguing properties of neural networks", 2014.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import column
from pyrobnn.robustness.attacks.losses import Margin
from pyrobnn.robustness.attacks.minimal import Closest, MinimalNormAttack, WeightSearch
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["LBFGS"]


@explained
@dataclass(frozen=True)
class LBFGS(MinimalNormAttack):
    """The closest input that is predicted as the target, by L-BFGS-B.

    ::

        adversarial = LBFGS(clip=(0.0, 1.0))(model, guide, x, targets)

    Args:
        epsilon: Radius of the ball; ``math.inf``: none. Successes beyond it are projected to it.
        norm: ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: The loss that is lowered.
        targeted: True, the only choice: the loss of a class to be left has no minimum that could be weighed.
        steps: Iterations of L-BFGS-B for each weight, at most.
        initial_weight: The first weight c.
        searches: Number of weights that are tried.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    targeted: bool = True
    steps: int = 50
    initial_weight: float = 1e-2
    searches: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targeted:
            raise ValueError("targeted: LBFGS needs target classes, True; CarliniWagnerL2 leaves a class.")
        check_positive_int("steps", self.steps)
        check_positive("initial_weight", self.initial_weight)
        check_positive_int("searches", self.searches)

    def search(self, problem: Problem) -> Tensor:
        """The closest successes."""
        Margin().check(problem.target.likelihood)
        closest = Closest(problem)
        closest.add(problem.x, problem.objective(problem.x, loss=Margin()) > 0)
        weights = WeightSearch(self.initial_weight, closest.distance)
        for _ in range(self.searches):
            moved = self._minimized(problem, weights.weight)
            success = problem.objective(moved, loss=Margin()) > 0
            closest.add(moved, success)
            weights.update(success)
        closest.shrink(lambda moved: problem.objective(moved, loss=Margin()) > 0)
        return closest.projected()

    def _minimized(self, problem: Problem, weight: Tensor) -> Tensor:
        from scipy.optimize import minimize

        x = problem.x

        def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
            moved = torch.from_numpy(flat).to(x).reshape(x.shape)
            objective, gradient = problem.objective_and_gradient(moved)
            offset = moved - x
            total = offset.double().square().sum() - (weight * objective).double().sum()
            slope = 2 * offset - weight.reshape(column(x)).to(x) * gradient
            return float(total), slope.double().reshape(-1).cpu().numpy()

        bounds = None if self.clip is None else [self.clip] * x.numel()
        start = x.double().reshape(-1).cpu().numpy()
        found = minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": self.steps})
        return problem.ball.clipped(torch.from_numpy(found.x).to(x).reshape(x.shape))
