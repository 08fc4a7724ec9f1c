"""What an attack has to solve: some inputs, the ball around each, the objective to be raised, and the best so far."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrobnn.robustness.attacks.balls import Ball, column
from pyrobnn.robustness.attacks.losses import Loss
from pyrobnn.robustness.attacks.target import Target

__all__ = ["Problem"]


class Problem:
    """Inputs of one part, which the network sees at a time.

    The objective is the loss of the true targets, or with ``targeted`` minus that of the targets to be reached: larger
    is better for the attack. Each evaluation is remembered where it is the best of its input, so that no attack has to
    keep its iterates, or evaluates them again.

    Args:
        target: The posterior predictive.
        x: Inputs ``[N, ...]``.
        y: Targets ``[N, ...]``; None for losses without.
        ball: Where inputs may go.
        loss: The loss.
        targeted: Whether ``y`` is to be reached.
        start: From the number of a restart to random points of the ball, ``[N, ...]``.
        seed: Of random numbers that the search needs.

    Attributes:
        best: The best inputs so far, ``[N, ...]``.
        best_objective: Their objective ``[N]``; None before anything was evaluated.
        last: The inputs that were evaluated last, of all rows.
        clean_objective: The objective of ``x``, once :meth:`objective` or :meth:`objective_and_gradient` had ``x``
            itself.
    """

    def __init__(
        self,
        target: Target,
        x: Tensor,
        y: Tensor | None,
        ball: Ball,
        loss: Loss,
        *,
        targeted: bool,
        start: Callable[[int], Tensor],
        seed: int,
    ) -> None:
        self.target, self.x, self.y, self.ball, self.loss, self.targeted = target, x, y, ball, loss, targeted
        self.generator = torch.Generator(device=x.device).manual_seed(seed)
        self.sign = -1.0 if targeted else 1.0
        self._start = start
        self.best, self.last = x.clone(), x
        self._is_shared = False  # whether the best are the caller's tensor, which is not written into
        self.best_objective: Tensor | None = None
        self.clean_objective: Tensor | None = None

    def part(self, rows: Tensor, loss: Loss, y: Tensor) -> Problem:
        """Some of the inputs, with a loss and targets of their own; what it finds is not remembered here.

        Args:
            rows: Which inputs, indices ``[n]``.
            loss: The loss that is raised, or lowered if targeted.
            y: Targets ``[n, ...]``.
        """
        found = Problem(
            self.target,
            self.x[rows],
            y,
            self.ball,
            loss,
            targeted=self.targeted,
            start=lambda restart: self.start(restart)[rows],
            seed=0,
        )
        found.generator = self.generator
        return found

    def start(self, restart: int = 0) -> Tensor:
        """Uniform random points of the ball; those of an input depend neither on the batch nor on other inputs."""
        return self._start(restart)

    def objective(self, moved: Tensor, rows: Tensor | None = None, loss: Loss | None = None) -> Tensor:
        """The objective of each input ``[n]``, under the pinned draws.

        Args:
            moved: Inputs ``[n, ...]``.
            rows: Which inputs of the part these are, indices ``[n]``; None for all.
            loss: Another loss than the attack's; its values are not remembered.
        """
        found = self.target.loss(moved, self._targets(rows), self.loss if loss is None else loss, rows) * self.sign
        if loss is None:
            self.remember(moved, found, rows)
        return found

    def evaluate(self, moved: Tensor) -> Tensor:
        """The objective ``[N]`` of inputs that may be outside of the ball, and are not remembered."""
        return self.target.loss(moved, self.y, self.loss) * self.sign

    def objective_and_gradient(
        self, moved: Tensor, rows: Tensor | None = None, loss: Loss | None = None
    ) -> tuple[Tensor, Tensor]:
        """The objective ``[n]`` and its gradient ``[n, ...]``; arguments as for :meth:`objective`.

        With fresh draws it is the objective under these, which is not remembered: it could not be compared.
        """
        own = self.loss if loss is None else loss
        if rows is None:
            self.last = moved
        found, gradient = self.target.loss_and_gradient(moved, self._targets(rows), own, rows)
        if self.targeted:
            found, gradient = -found, -gradient
        if loss is None and not self.target.is_fresh:
            self.remember(moved, found, rows)
        return found, gradient

    def remember(self, moved: Tensor, objective: Tensor, rows: Tensor | None = None) -> None:
        """Keeps inputs whose objective is the largest so far; of equal ones the first."""
        if moved is self.x:
            self.clean_objective = objective
        if self.best_objective is None:
            self.best_objective = self.x.new_full((len(self.x),), float("-inf"), dtype=objective.dtype)
        kept = self.best_objective if rows is None else self.best_objective[rows]
        better = objective > kept
        if rows is None:
            self.best_objective = torch.where(better, objective, kept)
            if bool(better.all()):
                self.best, self._is_shared = moved, True
            elif self._is_shared:
                self.best, self._is_shared = torch.where(better.reshape(column(self.x)), moved, self.best), False
            else:
                self.best[better] = moved[better]
        else:
            if self._is_shared:
                self.best, self._is_shared = self.best.clone(), False
            chosen = rows[better]
            self.best[chosen], self.best_objective[chosen] = moved[better], objective[better]

    def _targets(self, rows: Tensor | None) -> Tensor | None:
        return self.y if rows is None or self.y is None else self.y[rows]
