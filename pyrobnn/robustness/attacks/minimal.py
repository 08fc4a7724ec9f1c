"""What attacks of least distance share: the closest success of each input, and a search of the weight of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrobnn.robustness.attacks.balls import Norm, column
from pyrobnn.robustness.attacks.base import Attack
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["Closest", "MinimalNormAttack", "WeightSearch"]


@dataclass(frozen=True)
class MinimalNormAttack(Attack):
    """Base class of attacks that look for the closest input with another prediction, in the Euclidean norm.

    By default the ball is unlimited. With a finite ``epsilon``, successes beyond it are projected to the ball, and
    kept if they do harm there; successes inside are returned at their own distance, not at the boundary.

    Args:
        epsilon: Radius of the ball; ``math.inf``: none.
        norm: ``"l2"``.
    """

    epsilon: float = math.inf
    norm: Norm = "l2"

    keeps_best: ClassVar[bool] = False
    allows_infinite_radius: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "l2":
            raise ValueError(
                f"norm: {type(self).__name__} seeks the least Euclidean distance, 'l2', got {self.norm!r}."
            )


class Closest:
    """The closest success of each input so far.

    Args:
        problem: The clean inputs.

    Attributes:
        inputs: The closest success, or the input evaluated last where there is none, ``[N, ...]``.
        distance: Its distance, infinite where there is none, ``[N]``.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.inputs = problem.x.clone()
        self.distance = torch.full((len(problem.x),), math.inf, dtype=problem.x.dtype, device=problem.x.device)

    def add(self, moved: Tensor, is_success: Tensor) -> None:
        """Takes inputs ``[N, ...]`` that are closer successes, or where there is no success yet."""
        distance = self.problem.ball.distance(self.problem.x, moved)
        closer = is_success & (distance < self.distance)
        taken = closer | self.distance.isinf()
        self.inputs = torch.where(taken.reshape(column(moved)), moved, self.inputs)
        self.distance = torch.where(closer, distance, self.distance)

    def shrink(self, is_success: Callable[[Tensor], Tensor], halvings: int = 10) -> None:
        """Moves successes towards the clean inputs as long as they are successes, by bisection of the line between.

        Args:
            is_success: From inputs ``[N, ...]`` to whether each is one.
            halvings: Number of evaluations.
        """
        x, far = self.problem.x, self.inputs
        low, high = torch.zeros_like(self.distance), torch.ones_like(self.distance)
        for _ in range(halvings):
            share = (low + high) / 2
            moved = x + share.reshape(column(x)) * (far - x)
            success = is_success(moved)
            self.add(torch.where(self.distance.isinf().reshape(column(x)), far, moved), success)
            low, high = torch.where(success, low, share), torch.where(success, share, high)

    def projected(self) -> Tensor:
        """The inputs in the ball and the range."""
        return self.problem.ball.project(self.problem.x, self.inputs)


class WeightSearch:
    """Bisection of the weight c of the loss beside the distance, for each input: less after a success, more without.

    Args:
        start: The first weight.
        like: A tensor ``[N]``.
    """

    def __init__(self, start: float, like: Tensor) -> None:
        self.weight = torch.full_like(like, start)
        self.low, self.high = torch.zeros_like(like), torch.full_like(like, math.inf)

    def update(self, is_success: Tensor) -> None:
        """The next weights: the middle, or ten times more where no weight had success yet."""
        self.high = torch.where(is_success, torch.minimum(self.high, self.weight), self.high)
        self.low = torch.where(is_success, self.low, torch.maximum(self.low, self.weight))
        self.weight = torch.where(self.high.isinf(), self.weight * 10, (self.low + self.high) / 2)
