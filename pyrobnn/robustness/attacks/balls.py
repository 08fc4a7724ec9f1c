r"""Threat models: which inputs an attack may reach, and how to move among them.

A ball of radius :math:`\epsilon` around each input, in the maximum norm or the Euclidean norm of the whole input,
intersected with the range that inputs may have. Both are convex and hold the input itself, so that clipping after the
projection to the ball leaves it inside the ball.

The steepest direction of a unit step for a gradient g is :math:`\mathrm{sign}(g)` in the maximum norm and
:math:`g / \|g\|_2` in the Euclidean one. Random starts are uniform in the ball; in d dimensions the Euclidean distance
from its center is :math:`\epsilon\, u^{1/d}`.

Everything is a function of tensors, for batches ``[N, ...]`` of which each row has a ball of its own, without random
state other than the generator given. Training against attacks uses them, too.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained

__all__ = ["L2", "Ball", "Clip", "LInf", "Norm", "ball_of", "check_clip", "column", "norms_of", "step_length"]

Norm = Literal["linf", "l2"]
Clip = tuple[float, float] | None


@dataclass(frozen=True)
class Ball(ABC):
    """Base class: subclasses implement :meth:`distance`, :meth:`inside`, :meth:`steepest` and :meth:`uniform`.

    Args:
        epsilon: Radius, in the inputs' units; ``math.inf`` leaves the range as the only limit.
        clip: Smallest and largest input allowed, such as ``(0.0, 1.0)``; None for no limits.

    Raises:
        ValueError: If the radius is negative or the range is empty.
    """

    epsilon: float
    clip: Clip = None

    def __post_init__(self) -> None:
        is_number = isinstance(self.epsilon, int | float) and not isinstance(self.epsilon, bool)
        if not is_number or not self.epsilon >= 0:
            raise ValueError(f"epsilon: expected a radius of at least 0, got {self.epsilon!r}.")
        check_clip(self.clip)

    @abstractmethod
    def distance(self, x: Tensor, moved: Tensor) -> Tensor:
        """The norm of ``moved - x`` of each row, ``[N]``."""

    @abstractmethod
    def inside(self, x: Tensor, moved: Tensor) -> Tensor:
        """The nearest points of the ball around ``x``, whatever the range."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of unit norm along which a function with this gradient rises most; 0 where the gradient is 0."""

    @abstractmethod
    def uniform(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Uniform offsets in the ball, of the shape of ``x``, whatever the range."""

    def project(self, x: Tensor, moved: Tensor) -> Tensor:
        """Points of the ball around ``x`` and of the range; differentiable almost everywhere.

        Args:
            x: Centers ``[N, ...]``, which the range holds.
            moved: Any points, of the same shape.
        """
        return self.clipped(self.inside(x, moved))

    def projector(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """:meth:`project` around fixed centers ``[N, ...]``, for attacks of many steps."""
        return functools.partial(self.project, x)

    def stepper(self, x: Tensor, length: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Steps of one length along the steepest direction, each followed by the projection around fixed centers.

        Args:
            x: Centers ``[N, ...]``.
            length: Of a step.

        Returns:
            From points and a gradient there, which it may write into, to the next points.
        """
        project = self.projector(x)
        return lambda moved, gradient: project(torch.add(moved, self.steepest(gradient), alpha=length))

    def clipped(self, moved: Tensor) -> Tensor:
        """The points, clipped to the range."""
        return moved if self.clip is None else moved.clamp(*self.clip)

    def random_start(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniform points of the ball around each input, clipped to the range.

        Args:
            x: Centers ``[N, ...]``.
            generator: Where random numbers come from; torch's own state if None.

        Raises:
            ValueError: If the radius is infinite.
        """
        if math.isinf(self.epsilon):
            raise ValueError("epsilon: a ball of infinite radius has no uniform points; pass a finite one.")
        return self.project(x, x + self.uniform(x, generator))

    def contains(self, x: Tensor, moved: Tensor) -> Tensor:
        """Whether each row is in the ball and in the range, up to rounding, ``[N]``."""
        radius = 0.0 if math.isinf(self.epsilon) else self.epsilon
        slack = 16 * torch.finfo(x.dtype).eps * (float(x.abs().max()) + radius)
        near = self.distance(x, moved) <= self.epsilon + slack * self.distance(x[:1], x[:1] + 1.0)
        if self.clip is None:
            return near
        rows = moved.reshape(len(moved), -1)
        return near & (rows >= self.clip[0] - slack).all(1) & (rows <= self.clip[1] + slack).all(1)

    def check_range(self, x: Tensor) -> None:
        """Refuses inputs outside of the range.

        Raises:
            ValueError: If there are some.
        """
        if self.clip is not None and not bool(((x >= self.clip[0]) & (x <= self.clip[1])).all()):
            raise ValueError(
                f"x: inputs reach from {float(x.min()):.4g} to {float(x.max()):.4g}, beyond clip={self.clip}; pass the "
                "range of your inputs."
            )


@explained
class LInf(Ball):
    """The maximum norm: each entry of an input moves by at most ``epsilon``."""

    def distance(self, x: Tensor, moved: Tensor) -> Tensor:
        """The largest change of an entry."""
        return (moved - x).reshape(len(x), -1).abs().amax(1)

    def inside(self, x: Tensor, moved: Tensor) -> Tensor:
        """Each entry cut to its interval."""
        return torch.clamp(moved, x - self.epsilon, x + self.epsilon)

    def projector(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The intervals are cut to the range once, so that a projection is one pass over the inputs."""
        low, high = self._interval(x)
        return lambda moved: torch.clamp(moved, low, high)

    def stepper(self, x: Tensor, length: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The gradient's memory becomes the next points: new memory costs more than the arithmetic."""
        low, high = self._interval(x)

        def step(moved: Tensor, gradient: Tensor) -> Tensor:
            if not gradient.is_contiguous():  # an expanded one, as of a sum, has fewer entries than it shows
                gradient = gradient.contiguous()
            return torch.add(moved, gradient.sign_(), alpha=length, out=gradient).clamp_(low, high)

        return step

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign."""
        return gradient.sign()

    def uniform(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Independent entries."""
        return torch.empty_like(x).uniform_(-self.epsilon, self.epsilon, generator=generator)

    def _interval(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and largest entries in the ball and the range."""
        return self.clipped(x - self.epsilon), self.clipped(x + self.epsilon)


@explained
class L2(Ball):
    """The Euclidean norm of the whole input."""

    def distance(self, x: Tensor, moved: Tensor) -> Tensor:
        """The Euclidean distance."""
        return norms_of(moved - x).reshape(len(x))

    def inside(self, x: Tensor, moved: Tensor) -> Tensor:
        """Offsets that are too long, shortened."""
        if math.isinf(self.epsilon):
            return moved
        offset = moved - x
        norms = norms_of(offset)
        factor = self.epsilon / norms.clamp_min(torch.finfo(x.dtype).tiny)
        return torch.where(norms > self.epsilon, x + offset * factor, moved)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The normalized gradient."""
        largest = gradient.reshape(len(gradient), -1).abs().amax(1).reshape(column(gradient))
        scaled = gradient / torch.where(largest > 0, largest, 1.0)  # squares of tiny gradients would be 0
        return scaled / norms_of(scaled).clamp_min(1.0)

    def uniform(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """A direction from normal entries, and a distance."""
        direction = torch.empty_like(x).normal_(generator=generator)
        share = x.new_empty(column(x)).uniform_(generator=generator)
        dimension = max(1, x[0].numel())
        return direction * (self.epsilon * share ** (1 / dimension) / norms_of(direction))


_BALLS: dict[str, type[Ball]] = {"linf": LInf, "l2": L2}


def ball_of(norm: Norm, epsilon: float, clip: Clip = None) -> Ball:
    """The ball of a norm by its name.

    Args:
        norm: ``"linf"`` or ``"l2"``.
        epsilon: Radius.
        clip: Smallest and largest input allowed.

    Raises:
        ValueError: If the norm is unknown, the radius negative or the range empty.
    """
    if not isinstance(norm, str) or norm not in _BALLS:
        raise ValueError(f"norm: expected one of {sorted(_BALLS)}, got {norm!r}.")
    return _BALLS[norm](epsilon, clip)


def norms_of(x: Tensor) -> Tensor:
    """Euclidean norms of the rows, ``[N, 1, ...]``, which broadcast against ``x``."""
    return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1).reshape(column(x))


def check_clip(clip: object) -> None:
    """Refuses what is no range of inputs; None is allowed.

    Raises:
        ValueError: If it is not.
    """
    if clip is None:
        return
    is_pair = isinstance(clip, tuple | list) and len(clip) == 2
    numbers = is_pair and all(isinstance(end, int | float) and not isinstance(end, bool) for end in clip)  # type: ignore[attr-defined]
    if not numbers or not clip[0] < clip[1]:  # type: ignore[index]
        raise ValueError(f"clip: expected (smallest, largest), got {clip!r}.")


def column(x: Tensor) -> tuple[int, ...]:
    """The shape of one number for each row."""
    return (len(x), *[1] * (x.dim() - 1))


def step_length(epsilon: float, steps: int, step_size: float | None) -> float:
    """Length of each of some steps in a ball: as given, or ``2.5 ε / steps``, with which any of its points is in reach.

    Raises:
        TypeError: If the length given is no number.
        ValueError: If it is not positive.
    """
    if step_size is None:
        return 2.5 * epsilon / steps
    check_positive("step_size", step_size)
    return step_size
