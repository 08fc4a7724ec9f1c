"""Base class of attacks that try the most probable other classes in turn."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.robustness.attacks.losses import ClassLoss, NetworkRun
from pyrobnn.robustness.attacks.margin_attack import MarginAttack
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["PairLoss", "PerClassAttack"]


class PairLoss(ClassLoss):
    """Base class of losses of pairs ``[N, 2]``: the true class, and the one that is to be reached."""

    def summary(self, run: NetworkRun) -> Tensor:
        """Log probabilities ``[N, C]``."""
        return super().summary(run._replace(targets=None))  # pairs are no targets of the likelihood


@dataclass(frozen=True)
class PerClassAttack(MarginAttack):
    """Base class: subclasses implement :meth:`toward`; inputs that are misclassified by then are left alone.

    Args:
        steps: Number of steps toward each class.
        num_classes: How many classes, in the order of their probability at the clean input; at most as many as there
            are others.
    """

    steps: int = 100
    num_classes: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int("steps", self.steps)
        check_positive_int("num_classes", self.num_classes)

    @abstractmethod
    def pair_loss(self) -> PairLoss:
        """What is raised toward a class."""

    @abstractmethod
    def toward(self, problem: Problem, rank: int) -> Tensor:
        """Inputs ``[n, ...]`` of the ball that are the best toward the class in the targets' second column.

        Args:
            problem: Some of the inputs, with :meth:`pair_loss` and pairs of classes.
            rank: How probable that class is at the clean input, among the others, from 0.
        """

    def search(self, problem: Problem) -> Tensor:
        """The best toward any class."""
        clean = problem.target.log_probabilities(problem.x)
        if clean.dim() != 2:
            raise ValueError(
                f"y: {type(self).__name__} expects one label for each input, but predictions have shape "
                f"{list(clean.shape)}; use APGD, which takes several."
            )
        assert problem.y is not None
        labels = problem.y.long()
        wrong = problem.objective(problem.x) > 0
        others = clean.scatter(1, labels.unsqueeze(1), -torch.inf).argsort(1, descending=True)
        for rank in range(min(self.num_classes, clean.shape[1] - 1)):
            rows = (~wrong).nonzero().squeeze(1)
            if not len(rows):
                break
            pairs = torch.stack([labels, others[:, rank]], 1)
            found = self.toward(problem.part(rows, self.pair_loss(), pairs[rows]), rank)
            wrong[rows] |= problem.objective(found, rows) > 0
        return problem.best
