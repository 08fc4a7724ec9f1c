"""Base class of attacks: options, checks, batches, random numbers, and what every attack guarantees."""

from __future__ import annotations

import functools
import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled, ordinary
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.robustness.attacks.balls import Ball, Clip, Norm, ball_of, column
from pyrobnn.robustness.attacks.losses import Loss, loss_of
from pyrobnn.robustness.attacks.problem import Problem
from pyrobnn.robustness.attacks.target import QueriesUsedUpError, Target, stream

__all__ = ["Attack", "AttackResult", "QueryBudgetWarning"]


class QueryBudgetWarning(UserWarning):
    """An attack ended early, since its evaluations were used up; what it returns is the best so far."""


@dataclass(frozen=True, eq=False)
class AttackResult:
    """Adversarial inputs, and what they cost.

    Attributes:
        inputs: Of the shape, dtype and device of the clean ones.
        objective: What the attack raised, ``[N]``: the loss, or with ``targeted`` minus that of the targets to reach.
        clean_objective: The same at the clean inputs.
        queries: How often each input was evaluated under the posterior mean, at most.
    """

    inputs: Tensor
    objective: Tensor
    clean_objective: Tensor
    queries: int


@dataclass(frozen=True)
class Attack(ABC):
    """Base class: subclasses implement :meth:`search`; options are their fields, and an attack has no other state.

    ::

        attack = PGD(epsilon=0.3, clip=(0.0, 1.0))
        adversarial = attack(model, guide, x, y, num_samples=10, seed=0)

    Every attack returns inputs inside the ball and the range whose objective is not below that of the clean ones, where
    the network's rows do not see each other.

    Args:
        epsilon: Radius of the ball, in the inputs' units; 0 changes nothing.
        norm: ``"linf"``, the maximum norm, or ``"l2"``, the Euclidean norm of the whole input.
        clip: Smallest and largest input allowed, such as ``(0.0, 1.0)``; None for no limits.
        loss: What is raised: ``"cross_entropy"`` (minus the log predictive density, of any likelihood), ``"margin"``
            (classes only) or a :class:`~pyrobnn.robustness.Loss`.
        targeted: Lower the loss of ``y`` instead of raising it.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    epsilon: float
    norm: Norm = "linf"
    clip: Clip = None
    loss: str | Loss = "cross_entropy"
    targeted: bool = False

    keeps_best: ClassVar[bool] = True
    """Whether the result is the best of all evaluated inputs; else it is what :meth:`search` returns."""
    allows_infinite_radius: ClassVar[bool] = False
    uses_gradients: ClassVar[bool] = True
    """Whether it differentiates the network; :func:`~pyrobnn.robustness.evaluate` compares attacks of both kinds."""

    def __post_init__(self) -> None:
        ball_of(self.norm, self.epsilon, self.clip)
        if math.isinf(self.epsilon) and not self.allows_infinite_radius:
            raise ValueError(f"epsilon: expected a radius of at least 0, finite, got {self.epsilon!r}.")
        loss_of(self.loss)
        if not isinstance(self.targeted, bool):
            raise TypeError(f"targeted: expected True or False, got {self.targeted!r}.")

    @abstractmethod
    def search(self, problem: Problem) -> Tensor:
        """Looks for inputs in the ball with a large objective.

        Args:
            problem: The clean inputs ``problem.x``, their ball ``problem.ball``, random starts, and the objective with
                or without its gradient. It remembers the best of what it evaluates.

        Returns:
            The last inputs, in the ball and the range, which are evaluated once more; ``problem.best`` if nothing is
            left to evaluate.
        """

    @property
    def ascent_steps(self) -> int | None:
        """Steps of a plain ascent along the gradient from one start; None where the search is of another kind.

        More of them should not do less harm in the same ball: :func:`~pyrobnn.robustness.evaluate` looks whether they
        do.
        """
        return None

    @property
    def label(self) -> str:
        """A short name for tables."""
        return type(self).__name__

    @property
    def ball(self) -> Ball:
        """Where inputs may go."""
        return ball_of(self.norm, self.epsilon, self.clip)

    def objective_loss(self) -> Loss:
        """The loss that is raised, or lowered if targeted."""
        return loss_of(self.loss)

    def at(self, epsilon: float) -> Self:
        """The same attack with another radius."""
        return replace(self, epsilon=epsilon)

    def __call__(self, model: nn.Module, guide: Any, x: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
        """Adversarial inputs of the shape, dtype and device of ``x``; arguments and errors are those of :meth:`run`."""
        return self.run(model, guide, x, y, **options).inputs

    @explained
    def run(
        self,
        model: nn.Module,
        guide: Any,
        x: Tensor,
        y: Tensor | None = None,
        *,
        num_samples: int = 10,
        draws: Literal["pinned", "fresh"] = "pinned",
        likelihood: Likelihood | None = None,
        batch_size: int | None = None,
        max_bytes: int = 256 * 2**20,
        max_queries: int | None = None,
        seed: int | None = None,
    ) -> AttackResult:
        """Adversarial inputs, with their objective and cost.

        Args:
            model: A :class:`~pyrobnn.SupervisedModel`, or any Pyro model that returns the network's outputs when called
                with inputs only (then ``likelihood`` is needed). It is run in evaluation mode; its modes, buffers and
                ``requires_grad`` are as before afterward.
            guide: The posterior: a guide, or draws ``{site: [K, *site shape]}``. A single draw to be attacked is
                ``{site: value.unsqueeze(0)}`` with ``num_samples=1``.
            x: Inputs ``[N, ...]``.
            y: Their targets, or with ``targeted`` those that are to be reached, ``[N]`` or as the likelihood expects
                them; losses without targets, such as :class:`~pyrobnn.robustness.Uncertainty`, take None.
            num_samples: Number K of draws whose mean is attacked.
            draws: ``"pinned"``: all steps and all inputs see the same K draws, so that the objective is a fixed
                function. ``"fresh"``: each step draws K others, so that the attack cannot fit the noise of K draws;
                clean and final inputs are compared under pinned ones.
            likelihood: What the outputs mean; the model's own if None.
            batch_size: Inputs that are attacked at a time, which declares that rows do not interact; None cuts where
                :func:`pyrobnn.predict` would. The draws are the same for all.
            max_bytes: Budget for draws.
            max_queries: How often an input may be evaluated under the posterior mean. An attack that needs more ends
                with a :class:`QueryBudgetWarning` and what it has; the clean and the last inputs are evaluated
                beyond it, for comparison. None for no limit.
            seed: Fixes the draws, starts and steps, and leaves torch's random state alone; None takes a seed from it.

        Returns:
            The result; its ``inputs`` are what a call returns.

        Raises:
            TypeError: If the inputs or the posterior are of the wrong kind, or the loss is not one of this likelihood.
            ValueError: If an argument is out of its range, an input is, the network is not differentiable, or a
                gradient is not finite.
        """
        with gradients_enabled():
            target = Target(
                model,
                guide,
                num_samples=num_samples,
                draws=draws,
                likelihood=likelihood,
                batch_size=batch_size,
                max_bytes=max_bytes,
                max_queries=max_queries,
                seed=random_state.fresh_seed() if seed is None else seed,
            )
            loss = self.objective_loss()
            loss.check(target.likelihood)
            self._check_inputs(x, y, loss)
            inputs = ordinary(x.detach()).to(target.device)
            targets = None if y is None or not loss.needs_targets else ordinary(y).to(target.device)
            with target.runner.ready(), random_state.preserved(target.device):
                found = self._in_parts(target, loss, inputs, targets)
            moved, objective, clean = (torch.cat(column).to(x.device) for column in zip(*found, strict=True))
            return AttackResult(moved, objective, clean, target.queries)

    def _in_parts(self, target: Target, loss: Loss, x: Tensor, y: Tensor | None) -> list[tuple[Tensor, ...]]:
        """Inputs, objectives and clean objectives of each part."""
        random_state.seed(stream(target.seed, 2), x.device)  # of networks that are random themselves
        starts: dict[int, Tensor] = {}

        def start(rows: slice, restart: int) -> Tensor:
            if restart not in starts:  # made for all inputs at once, so that parts change nothing
                generator = torch.Generator(device=x.device).manual_seed(stream(target.seed, 3, restart))
                starts[restart] = self.ball.random_start(x, generator)
            return starts[restart][rows]

        found: list[tuple[Tensor, ...]] = []
        done, is_cut, most = 0, False, 0
        for part in target.parts(x):
            rows = slice(done, done + len(part.inputs))
            problem = Problem(
                target,
                part.inputs,
                None if y is None else y[rows],
                self.ball,
                loss,
                targeted=self.targeted,
                start=functools.partial(start, rows),
                seed=stream(target.seed, 4),
            )
            done = rows.stop
            target.restart()
            try:
                last = self.search(problem) if self.epsilon > 0 else problem.x
            except QueriesUsedUpError:
                seen = problem.last if self.keeps_best else problem.best
                last, is_cut = self.ball.project(problem.x, seen), True
            found.append(self._settled(problem, last))
            most = max(most, target.queries)
        target.queries = most
        if is_cut:
            warnings.warn(
                f"max_queries: {type(self).__name__} used up its {target.max_queries} evaluations of each input and "
                "ended early; its result is the best so far, and no bound on what an attacker can do.",
                QueryBudgetWarning,
                stacklevel=5,
            )
        return found

    def _settled(self, problem: Problem, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best inputs, never worse than the clean ones, with both objectives."""
        problem.target.is_limited = False
        x = problem.x
        is_evaluated = last is problem.best or last is x  # asked first: the clean inputs may replace the best
        clean = problem.objective(x) if problem.clean_objective is None else problem.clean_objective
        if self.keeps_best:
            if not is_evaluated:
                problem.objective(last)
            moved, objective = problem.best, problem.best_objective
        else:
            objective = problem.objective(last)
            better = objective >= clean
            moved = torch.where(better.reshape(column(x)), last, x)
            objective = torch.where(better, objective, clean)
        assert objective is not None
        if not bool(self.ball.contains(x, moved).all()):
            raise RuntimeError(f"{type(self).__name__}.search left the ball or the range; project its inputs.")
        return moved, objective, clean

    def _check_inputs(self, x: Tensor, y: Tensor | None, loss: Loss) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a tensor of floating-point inputs, got {kind}.")
        if not x.dim() or not len(x):
            raise ValueError(f"x: expected inputs [N, ...], at least one, got shape {tuple(x.shape)}.")
        if loss.needs_targets:
            if not isinstance(y, Tensor):
                raise TypeError(f"y: expected a tensor of targets, got {type(y).__name__}.")
            if not y.dim() or len(x) != len(y):
                raise ValueError(f"x, y: expected as many targets as inputs, got {list(y.shape)} and {list(x.shape)}.")
        if not bool(x.isfinite().all()):
            raise ValueError("x: it holds NaN or infinite inputs; clean the data.")
        self.ball.check_range(x)
