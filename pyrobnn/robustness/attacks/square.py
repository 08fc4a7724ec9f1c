r"""Square: random squares of the largest change, kept where they lower the margin. It needs no gradient.

Maximum norm: all entries begin at :math:`\pm\epsilon` in vertical stripes; then in each query a random box of an input
becomes :math:`+\epsilon` or :math:`-\epsilon`, one sign for each channel. Euclidean norm: in each query, the budget of
a box and what was left unused elsewhere go to a box of another place, as a bump whose mass decreases from its center.
The share p of an input that a box covers is halved as queries go on. A change stays where the objective rises.
Andriushchenko, Croce, Flammarion & Hein, "Square attack: a query-efficient black-box adversarial attack via random
search", 2020.

The last dimensions of an input are its space: those after the first for inputs ``[N, C, ...]``, all for ``[N, D]``. The
boxes of a query are the same for all inputs, so that results do not depend on batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_number, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.base import Attack
from pyrobnn.robustness.attacks.losses import Loss
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["Square"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, after which the share of a box is halved."""


@explained
@dataclass(frozen=True)
class Square(Attack):
    """Random search in boxes.

    ::

        adversarial = Square(epsilon=0.3, clip=(0.0, 1.0), steps=1000)(model, guide, x, y)

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: What is raised.
        targeted: Lower the loss of ``y`` instead of raising it.
        steps: Number of queries.
        share: Share p of an input that a box covers at first.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    loss: str | Loss = "margin"
    steps: int = 5000
    share: float = 0.8

    uses_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int("steps", self.steps)
        check_number("share", self.share, 0.0, 1.0)

    def search(self, problem: Problem) -> Tensor:
        """The best inputs."""
        propose = _proposed_linf if self.norm == "linf" else _proposed_l2
        shape = problem.x.shape[1:] if problem.x.dim() > 2 else (1, *problem.x.shape[1:])
        images = _Images(tuple(shape), problem.generator)
        problem.objective(problem.x)
        problem.objective(problem.ball.project(problem.x, problem.x + self._start(images, problem.x)))
        for step in range(self.steps - 2):
            size = images.box_sizes(self.share_at(step))
            offsets = (problem.best - problem.x).reshape(-1, *images.shape)
            moved = propose(images, offsets, self.epsilon, size).reshape(problem.x.shape)
            problem.objective(problem.ball.project(problem.x, problem.x + moved))
        return problem.best

    def share_at(self, step: int) -> float:
        """The share of a box at a query, of the paper's schedule."""
        scaled = step * 10_000 / self.steps
        return self.share / 2 ** sum(scaled > halving for halving in _HALVINGS)

    def _start(self, images: _Images, x: Tensor) -> Tensor:
        """Stripes along the last dimension but one, or a grid of bumps."""
        if self.norm == "linf":
            shape = (images.shape[0], *[1] * (len(images.shape) - 2), images.shape[-1])
            return (self.epsilon * images.signs(shape, x)).expand(len(x), *images.shape).reshape(x.shape)
        pattern = x.new_zeros(images.shape)
        width = [max(1, size // 5) for size in images.shape[1:]]
        tile = images.bump(width, x)
        for corner in images.corners(width):
            place = images.place(corner, width)
            pattern[place] = tile * images.signs((images.shape[0], *[1] * len(width)), x)
        pattern = self.epsilon * pattern / pattern.norm()
        return pattern.expand(len(x), *images.shape).reshape(x.shape)


class _Images:
    """Inputs as channels and space, and random numbers for them."""

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator) -> None:
        self.shape, self.generator = shape, generator

    def box_sizes(self, share: float) -> list[int]:
        """Side lengths of a box that covers a share of the space."""
        space = self.shape[1:]
        side = (share * math.prod(space)) ** (1.0 / len(space))
        return [min(max(round(side), 1), size) for size in space]

    def corner(self, sizes: list[int]) -> list[int]:
        """A random corner of a box."""
        device = self.generator.device
        return [
            int(torch.randint(size - width + 1, (), generator=self.generator, device=device))
            for size, width in zip(self.shape[1:], sizes, strict=True)
        ]

    def corners(self, sizes: list[int]) -> list[list[int]]:
        """The corners of all boxes of a grid."""
        axes = [range(0, size - width + 1, width) for size, width in zip(self.shape[1:], sizes, strict=True)]
        grids = torch.meshgrid(*[torch.tensor(list(axis)) for axis in axes], indexing="ij")
        return torch.stack([grid.flatten() for grid in grids], 1).tolist()

    def place(self, corner: list[int], sizes: list[int]) -> tuple[slice, ...]:
        """The index of a box in all channels."""
        return (slice(None), *(slice(low, low + width) for low, width in zip(corner, sizes, strict=True)))

    def signs(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Random signs."""
        bits = torch.randint(2, shape, generator=self.generator, device=self.generator.device)
        return (2 * bits - 1).to(like)

    def bump(self, sizes: list[int], like: Tensor) -> Tensor:
        """A pattern of norm 1: two halves of opposite sign, each of a mass that falls off from its center."""
        axis = max(range(len(sizes)), key=lambda index: sizes[index])
        first = sizes[axis] // 2
        parts = []
        for length, sign in ((first, 1.0), (sizes[axis] - first, -1.0)):
            if length:
                own = [length if index == axis else size for index, size in enumerate(sizes)]
                parts.append(sign * _pyramid(own, like))
        found = torch.cat(parts, axis)
        if int(torch.randint(2, (), generator=self.generator, device=self.generator.device)) and len(sizes) > 1:
            swapped = found.transpose(0, 1)
            found = swapped if swapped.shape == found.shape else found
        return found / found.norm()


def _pyramid(sizes: list[int], like: Tensor) -> Tensor:
    """At a distance r from the center, in the maximum norm, the sum of 1/(k + 1)² over k from r on."""
    axes = [(torch.arange(size, device=like.device) - size // 2).abs() for size in sizes]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).amax(0)
    terms = 1.0 / torch.arange(1, max(sizes) // 2 + 2, dtype=like.dtype, device=like.device).square()
    return terms.flip(0).cumsum(0).flip(0)[distance]


def _proposed_linf(images: _Images, offsets: Tensor, epsilon: float, sizes: list[int]) -> Tensor:
    """Offsets ``[N, C, ...]`` whose box is at the largest change."""
    place = images.place(images.corner(sizes), sizes)
    moved = offsets.clone()
    moved[(slice(None), *place)] = epsilon * images.signs((images.shape[0], *[1] * len(sizes)), offsets)
    return moved


def _proposed_l2(images: _Images, offsets: Tensor, epsilon: float, sizes: list[int]) -> Tensor:
    """Offsets whose first box gets a bump and the second box's norm, which is set to zero."""
    sizes = [size + (size % 2 == 0) * (size < full) for size, full in zip(sizes, images.shape[1:], strict=True)]
    first, second = (images.place(images.corner(sizes), sizes) for _ in range(2))
    place, other = (slice(None), *first), (slice(None), *second)
    dims = tuple(range(2, offsets.dim()))
    mask = torch.zeros_like(offsets[:1])
    mask[place], mask[other] = 1.0, 1.0
    budget = (mask * offsets).square().sum(dims, keepdim=True)  # of each channel, in both boxes
    unused = (epsilon**2 - offsets.square().sum((1, *dims), keepdim=True)).clamp_min(0.0)
    own = offsets[place]
    norm = own.square().sum(dims, keepdim=True).sqrt()
    signs = images.signs((1, images.shape[0], *[1] * len(dims)), offsets)
    bump = signs * images.bump(sizes, offsets) + own / norm.clamp_min(torch.finfo(offsets.dtype).tiny)
    bump = bump / bump.square().sum(dims, keepdim=True).sqrt().clamp_min(torch.finfo(offsets.dtype).tiny)
    moved = offsets.clone()
    moved[other] = 0.0
    moved[place] = bump * (budget + unused / images.shape[0]).sqrt()
    return moved
