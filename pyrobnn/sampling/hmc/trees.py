r"""Trees of the No-U-Turn sampler for several chains at once, built leaf by leaf.

A tree is a stretch of a trajectory that doubles: to :math:`2^j` leaves a subtree of as many is added at an end drawn at
random. It is complete when it makes a U-turn. With the momenta :math:`p_1, \dots, p_n` of a stretch and the inverse
mass matrix :math:`M^{-1}` that is, at one of its ends :math:`i \in \{1, n\}`,

.. math::  p_i^\top M^{-1} ρ \le 0, \qquad ρ = \sum_{k=1}^n p_k - \tfrac12 (p_1 + p_n),

for the tree or for one of the balanced subtrees within the last subtree, which is then discarded, as is one whose
energy exceeds that of the start by 1000 nats. (ρ is the trapezoidal rule for the integral of p over the stretch, so
that running sums of it at two leaves give that between them as a difference.) Leaves have weights
:math:`e^{-H(q, p)}`: within a subtree the draw is one of them in proportion, and it replaces that of the tree before
with probability :math:`\min(1, w_\text{new} / w_\text{old})`.

No recursion is needed: of the leaf n of a subtree, counted from 0, only the momentum and the running sum are kept, if n
is even, in the slot given by the number of ones in the binary digits of n. At an odd leaf exactly those slots hold the
first leaves of the balanced subtrees that end there.

What belongs to a chain's position is a row of tensors ``[C, d]``; numbers of chains are arrays ``[C]`` of NumPy in
double precision. Chains need not be at the same leaf, nor in the same transition.

Hoffman & Gelman, *The No-U-Turn Sampler* (2014); Betancourt, *A Conceptual Introduction to Hamiltonian Monte Carlo*
(2017), appendix A.4; Phan, Pradhan & Jankowiak, *Composable Effects for Flexible and Accelerated Probabilistic
Programming in NumPyro* (2019); Lao & Dillon, *Unrolled Implementation of No-U-Turn Sampler* (2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.sampling.hmc.failures import DIVERGED
from pyrobnn.sampling.hmc.leapfrog import Leapfrogs
from pyrobnn.sampling.hmc.metric import Metric

__all__ = ["Leaves", "Trees", "ending_subtrees", "slot_of"]

Array = np.ndarray[Any, Any]

_UNIFORMS = 256  # leaves for which random numbers are drawn together


def slot_of(leaf: int) -> int:
    """Where what an even leaf leaves behind is kept: its number of binary ones."""
    return (leaf >> 1).bit_count()


def ending_subtrees(leaf: int) -> range:
    """Slots of the first leaves of the balanced subtrees, of two leaves or more, that end with a leaf."""
    last, ones = slot_of(leaf), (leaf ^ (leaf + 1)).bit_count() - 1
    return range(last - ones + 1, last + 1)


@dataclass
class Leaves:
    """One leaf of each chain, as a next state or a candidate for it.

    Attributes:
        position, gradient: ``[C, d]``; never written in place.
        potential: U ``[C]``.
        energy: H ``[C]``.
    """

    position: Tensor
    gradient: Tensor
    potential: Array
    energy: Array

    def replace(self, chains: Array, other: Leaves) -> None:
        """Takes over the leaves of those chains ``[C]``."""
        if not chains.any():
            return
        rows = torch.from_numpy(chains).to(self.position.device).unsqueeze(-1)
        self.position = torch.where(rows, other.position, self.position)
        self.gradient = torch.where(rows, other.gradient, self.gradient)
        self.potential = np.where(chains, other.potential, self.potential)
        self.energy = np.where(chains, other.energy, self.energy)


class Trees:
    """The trees of C chains.

    Args:
        leapfrogs: What moves chains.
        position, gradient, potential: Where they start: ``[C, d]``, ``[C, d]`` and ``[C]``.
        metric: Their kinetic energy; may be exchanged between transitions.
        step_size: Step sizes ``[C]``; likewise, by :meth:`set_step_size`.
        max_depth: Doublings in a tree, at most.
        generator: For all random numbers.

    Attributes:
        draw: The chains' states; while a tree grows, that of the part which is complete.
        active: Which chains' trees are growing ``[C]``.
        depth, num_leapfrog: Of each tree: doublings that were completed, and leapfrogs.
        diverging: Which trees diverged.
        num_rounds: Calls of :meth:`grow`; each computes a gradient of every chain, of use or not.
    """

    def __init__(
        self,
        leapfrogs: Leapfrogs,
        position: Tensor,
        gradient: Tensor,
        potential: Tensor,
        *,
        metric: Metric,
        step_size: Tensor,
        max_depth: int,
        generator: torch.Generator,
    ) -> None:
        self.leapfrogs, self.metric, self.max_depth, self.generator = leapfrogs, metric, max_depth, generator
        num_chains = len(position)
        self.draw = Leaves(position, gradient, potential.double().cpu().numpy(), np.zeros(num_chains))
        self._candidate = Leaves(position, gradient, self.draw.potential, self.draw.energy)
        # The end that moves, and the other; slot 0 has the other's momentum and running sum.
        self._position = self._far_position = position
        self._gradient = self._far_gradient = gradient
        self._momentum = self._sum = torch.zeros_like(position)
        self._value = potential
        self._make_slots(position.new_zeros(2, 1, *position.shape))
        self.active, self.diverging = np.zeros(num_chains, dtype=bool), np.zeros(num_chains, dtype=bool)
        # Leaves are counted from 0 in each subtree, to the last.
        self.depth, self.num_leapfrog, self._leaf, self._last = np.zeros((4, num_chains), dtype=np.int64)
        self._start_energy, self._log_weight, self._log_candidate, self._acceptance = np.zeros((4, num_chains))
        self._direction = np.ones(num_chains)
        self._random: list[Array] = []
        self.num_rounds = 0
        self.set_step_size(step_size)

    def set_step_size(self, step_size: Tensor) -> None:
        """Step sizes ``[C]`` of all trees to come."""
        self.step_size = step_size.double().cpu().numpy()

    def begin(self, chains: Array) -> None:
        """Gives those chains ``[C]`` new momenta, and trees of one leaf."""
        rows = np.flatnonzero(chains)
        if not len(rows):
            return
        index = torch.from_numpy(rows).to(self._position.device)
        noise = self._momentum.new_empty(len(rows), self._momentum.shape[-1]).normal_(generator=self.generator)
        momentum = self.metric.momentum(noise)
        kinetic = self.metric.kinetic(momentum).double().cpu().numpy()
        position, gradient = self.draw.position[index], self.draw.gradient[index]
        # Not in place: a gradient may be a constant of the potential's graph, or the position itself.
        self._position = self._position.index_copy(0, index, position)
        self._gradient = self._gradient.index_copy(0, index, gradient)
        self._far_position = self._far_position.index_copy(0, index, position)
        self._far_gradient = self._far_gradient.index_copy(0, index, gradient)
        self._momentum = self._momentum.index_copy(0, index, momentum)
        self._sum = self._sum.index_fill(0, index, 0.0)
        self._slots[0, 0, index] = momentum
        self._slots[1, 0, index] = 0.0
        self._start_energy[rows] = self.draw.potential[rows] + kinetic
        self.draw.energy = np.where(chains, self._start_energy, self.draw.energy)
        for numbers in (self.depth, self.num_leapfrog, self._leaf, self._last, self.diverging):
            numbers[rows] = 0
        self._log_weight[rows] = self._acceptance[rows] = 0.0
        self._log_candidate[rows] = -np.inf
        self._direction[rows] = 1.0  # momenta are symmetric, so one direction is as good as the other
        self.active[rows] = True
        self._set_steps()

    def grow(self) -> Array:
        """Adds a leaf to each growing tree.

        Returns:
            Which trees are complete now ``[C]``; their chains have moved to :attr:`draw`.
        """
        self.num_rounds += 1
        before, active = self._momentum, self.active
        state = self.metric.leapfrog(self.leapfrogs, (self._position, before, self._gradient, self._value), self._steps)
        self._position, self._momentum, self._gradient, self._value = state
        self._sum = torch.addcmul(self._sum, self._half_directions, before + self._momentum)
        potential, kinetic = torch.stack((self._value, self.metric.kinetic(self._momentum))).cpu().numpy()
        for_leaf, for_tree, for_direction = self._uniforms()
        with np.errstate(all="ignore"):
            weight = self._start_energy - potential - kinetic  # its logarithm, in double precision
            weight[~np.isfinite(weight)] = -np.inf
            self._acceptance += active * np.exp(np.minimum(weight, 0.0))
            self._log_candidate = np.logaddexp(self._log_candidate, weight)
            is_chosen = active & (for_leaf < np.exp(weight - self._log_candidate))
        leaf = Leaves(self._position, self._gradient, potential, self._start_energy - weight)
        self._candidate.replace(is_chosen, leaf)
        self.num_leapfrog += active
        alive = active & (weight >= -DIVERGED)
        is_last = alive & (self._leaf == self._last)
        is_turning, turns_whole = self._turning(alive, is_last)
        ended = (active ^ alive) | is_turning
        if not (is_last.any() or ended.any()):  # as at most leaves
            self._leaf += active
            return ended
        self.diverging |= active ^ alive
        is_complete = is_last & ~is_turning
        with np.errstate(all="ignore"):
            moves = for_tree < np.exp(self._log_candidate - self._log_weight)
        self.draw.replace(is_complete & moves, self._candidate)
        self.depth += is_complete
        ended |= is_complete & (turns_whole | (self.depth == self.max_depth))
        self.active = active & ~ended
        self._leaf += self.active
        self._begin_subtrees(is_complete & self.active, for_direction < 0.5)
        return ended

    def statistics(self) -> dict[str, Array]:
        """Figures of the last transition of each chain, ``[C]`` each."""
        return {
            "acceptance_rate": self._acceptance / np.maximum(self.num_leapfrog, 1),
            "energy": self.draw.energy,
            "lp": -self.draw.potential,
            "diverging": self.diverging,
            "step_size": self.step_size,
            "n_steps": self.num_leapfrog,
            "tree_depth": self.depth,
        }

    def _begin_subtrees(self, chains: Array, flips: Array) -> None:
        """Starts the next subtrees of those chains, at the other end where ``flips``."""
        self._log_weight = np.where(chains, np.logaddexp(self._log_weight, self._log_candidate), self._log_weight)
        self._log_candidate[chains] = -np.inf
        self._leaf[chains] = 0
        self._last[chains] = (1 << self.depth[chains]) - 1
        if (flips := chains & flips).any():
            self._direction[flips] *= -1.0
            rows = torch.from_numpy(flips).to(self._position.device).unsqueeze(-1)
            self._position, self._far_position = _swapped(rows, self._position, self._far_position)
            self._gradient, self._far_gradient = _swapped(rows, self._gradient, self._far_gradient)
            self._momentum, self._slots[0, 0] = _swapped(rows, self._momentum, self._slots[0, 0])
            self._sum, self._slots[1, 0] = _swapped(rows, self._sum, self._slots[1, 0])
        if (missing := 1 + int(self.depth[chains].max(initial=0)) - self._slots.shape[1]) > 0:
            more = self._slots.new_zeros(2, missing, *self._position.shape)
            self._make_slots(torch.cat((self._slots, more), 1))
        self._set_steps()

    def _turning(self, chains: Array, is_last: Array) -> tuple[Array, Array]:
        """Tests the subtrees that end with the present leaf, and the whole trees where it is the last of a doubling."""
        even, ends, starts = [], [], []  # rows of _momentum, and rows of the flat slots
        num_chains = len(chains)
        for chain in np.flatnonzero(chains).tolist():
            leaf = int(self._leaf[chain])
            if leaf % 2:
                slots = ending_subtrees(leaf)
                ends += [chain] * len(slots)
                starts += [(1 + slot) * num_chains + chain for slot in slots]
            elif self.depth[chain]:
                even.append((1 + slot_of(leaf)) * num_chains + chain)
            if is_last[chain]:
                ends.append(chain)
                starts.append(chain)
        momenta, sums = self._flat_slots
        if even:
            to = torch.tensor(even, device=momenta.device)
            momenta.index_copy_(0, to, self._momentum[to % num_chains])
            sums.index_copy_(0, to, self._sum[to % num_chains])
        found = np.zeros((2, num_chains), dtype=bool)
        if ends:
            end, start = torch.tensor([ends, starts], device=momenta.device)
            velocity = self.metric.velocity(self._sum[end] - sums[start])
            along = (torch.stack((momenta[start], self._momentum[end])) * velocity).sum(-1).cpu().numpy()
            for chain, slot, one, other in zip(ends, starts, *(along * self._direction[ends]).tolist(), strict=True):
                if one <= 0.0 or other <= 0.0:
                    found[int(slot < num_chains), chain] = True
        return found[0], found[1]

    def _make_slots(self, slots: Tensor) -> None:
        """Momenta and running sums ``[2, slots, C, d]``."""
        self._slots, self._flat_slots = slots, slots.flatten(1, 2).unbind()

    def _set_steps(self) -> None:
        """Puts what the next leapfrogs need on the device; where no tree grows, steps are zero."""
        moving = np.where(self.active, self._direction, 0.0)
        both = torch.from_numpy(np.stack((moving * self.step_size, 0.5 * moving))).to(self._position).unsqueeze(-1)
        self._steps, self._half_directions = both.unbind()

    def _uniforms(self) -> Array:
        """Three uniform random numbers of each chain ``[3, C]``."""
        if not self._random:
            shape = (_UNIFORMS, 3, len(self.active))
            device = self._position.device
            drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64, device=device)
            self._random = list(drawn.cpu().numpy())
        return self._random.pop()


def _swapped(rows: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(rows, other, one), torch.where(rows, one, other)
