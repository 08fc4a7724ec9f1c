"""A transition of NUTS for one chain by plain recursion, leaf by leaf, in double precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrobnn.sampling.hmc.trees import Trees


@dataclass
class Reference:
    """The transition of one chain from ``position`` with ``momentum``, as Pyro's NUTS does it, by recursion.

    Attributes:
        random: Three uniform numbers for each leaf, in the order in which :class:`Trees` uses them.
    """

    trees: Trees
    step_size: float
    max_depth: int
    random: Iterator[Any]
    leaves: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    energies: dict[int, float] = field(default_factory=dict)
    made: list[int] = field(default_factory=list)

    def run(self, position: Tensor, momentum: Tensor) -> dict[str, Any]:
        gradient = self._evaluate(position)[1]
        self.leaves = {0: (position, momentum, gradient)}
        self.energies = {0: self._energy(position, momentum)}
        self.made = []
        draw, weight, left, right, depth, forward = 0, 1.0, 0, 0, 0, True
        diverging = False
        while depth < self.max_depth:
            self.candidate, self.total = 0, 0.0
            first = right + 1 if forward else left - 1
            turning, diverging = self._build(first, 1 if forward else -1, depth)
            if turning or diverging:
                break
            left, right = (left, right + 2**depth) if forward else (left - 2**depth, right)
            depth += 1
            if self.used[1] < min(1.0, self.total / weight):
                draw = self.candidate
            weight += self.total
            if self._turns(left, right):
                break
            forward = forward != (self.used[2] < 0.5)
        chances = [min(1.0, math.exp(self.energies[0] - self.energies[leaf])) for leaf in self.made]
        return {
            "position": self.leaves[draw][0],
            "energy": self.energies[draw],
            "n_steps": len(self.made),
            "tree_depth": depth,
            "diverging": diverging,
            "acceptance_rate": sum(chances) / len(chances),
            "ends": (left, right),
        }

    def _build(self, leaf: int, sign: int, depth: int) -> tuple[bool, bool]:
        """Adds ``2 ** depth`` leaves, the first of which is ``leaf``; whether they turn or diverge."""
        if depth == 0:
            return False, self._add(leaf, sign)
        half = 2 ** (depth - 1)
        for part in (leaf, leaf + sign * half):
            turning, diverging = self._build(part, sign, depth - 1)
            if turning or diverging:
                return turning, diverging
        return self._turns(*sorted((leaf, leaf + sign * (2 * half - 1)))), False

    def _add(self, leaf: int, sign: int) -> bool:
        position, momentum, gradient = self.leaves[leaf - sign]
        step = sign * self.step_size
        momentum = momentum - 0.5 * step * gradient
        position = position + step * self.trees.metric.velocity(momentum)
        gradient = self._evaluate(position)[1]
        momentum = momentum - 0.5 * step * gradient
        self.leaves[leaf] = position, momentum, gradient
        self.energies[leaf] = self._energy(position, momentum)
        self.made.append(leaf)
        self.used = next(self.random)
        if not self.energies[leaf] - self.energies[0] <= 1000.0:
            return True
        weight = math.exp(self.energies[0] - self.energies[leaf])
        self.total += weight
        if self.total > 0.0 and self.used[0] < weight / self.total:  # a weight may underflow
            self.candidate = leaf
        return False

    def _turns(self, left: int, right: int) -> bool:
        momenta = torch.stack([self.leaves[leaf][1] for leaf in range(left, right + 1)])
        rho = momenta.sum(0) - 0.5 * (momenta[0] + momenta[-1])
        velocity = self.trees.metric.velocity(rho)
        return bool((momenta[[0, -1]] @ velocity <= 0.0).any())

    def _energy(self, position: Tensor, momentum: Tensor) -> float:
        return float(self._evaluate(position)[0] + self.trees.metric.kinetic(momentum))

    def _evaluate(self, position: Tensor) -> tuple[Tensor, Tensor]:
        return self.trees.leapfrogs.potential.value_and_grad(position)
