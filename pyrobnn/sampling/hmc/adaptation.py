r"""Adaptation of HMC during its warmup: step size and diagonal mass matrix, one for all chains.

The step size follows dual averaging (Nesterov 2009; Hoffman & Gelman 2014): from the acceptance probabilities
:math:`α_t`, averaged over chains, it seeks the ε at which their mean is the target. The inverse mass matrix is the
variance of each coordinate, averaged over chains, in windows that double in length, as in Stan: a fast phase for the
step size alone, slow windows each of which ends with a new mass matrix, and a last fast phase. Variances are taken
around each chain's own mean, so that chains in different modes do not blow them up. After warmup nothing changes any
more, which is what makes the draws those of a Markov chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from pyrobnn.core.moments import RunningMoments

__all__ = ["ChainVariance", "Warmup", "reasonable_step_size", "windows"]

_LARGEST, _SMALLEST = 1e3, 1e-10


class ChainVariance:
    """The variance of each coordinate within chains, from states that come one at a time."""

    def __init__(self) -> None:
        self._moments = RunningMoments()

    def add(self, states: Tensor) -> None:
        """Counts the next state of each chain, ``[C, d]``."""
        self._moments.add(states.unsqueeze(0))

    def regularized(self) -> Tensor:
        """The variance ``[d]``, shrunk toward 1e-3 with the weight of five states, as in Stan."""
        seen = self._moments.count * len(self._moments.mean)
        return (self._moments.variance().mean(0) * seen + 5e-3) / (seen + 5.0)


class Warmup:
    """What the next transition of warmup is to use.

    Args:
        length: Transitions of warmup.
        start: The first states ``[C, d]``.
        step_size: The first step size.
        target: Acceptance probability that the step size aims at.
        adapts_step_size: Whether the step size adapts.
        adapts_mass: Whether the mass matrix does.
        find: From an inverse mass matrix to a step size to begin again with, after each new one.

    Attributes:
        step_size: ε.
        inverse_mass: Diagonal of the inverse mass matrix ``[d]``.
    """

    def __init__(
        self,
        length: int,
        start: Tensor,
        step_size: float,
        *,
        target: float,
        adapts_step_size: bool,
        adapts_mass: bool,
        find: Callable[[Tensor, float], float],
    ) -> None:
        self.step_size, self.inverse_mass = step_size, torch.ones_like(start[0])
        self.target, self.length, self.find = target, length, find
        self.adapts_step_size = adapts_step_size and length > 0
        self.first, self.ends = windows(length) if adapts_mass else (0, [])
        self._variance = ChainVariance()
        if self.adapts_step_size:
            self._restart()

    def update(self, index: int, states: Tensor, acceptance: Tensor) -> None:
        """Learns from transition ``index`` of warmup: its states ``[C, d]`` and acceptance probabilities ``[C]``."""
        if self.adapts_step_size:
            self._averaging.step(self.target - float(acceptance.mean()))
            self.step_size = _clamped(math.exp(self._averaging.get_state()[0]))
        if self.ends and self.first <= index <= self.ends[-1]:
            self._variance.add(states)
        if index in self.ends:
            self.inverse_mass = self._variance.regularized()
            self._variance = ChainVariance()
            if self.adapts_step_size:
                self._restart()
        if self.adapts_step_size and index == self.length - 1:
            self.step_size = _clamped(math.exp(self._averaging.get_state()[1]))

    def _restart(self) -> None:
        self.step_size = self.find(self.inverse_mass, self.step_size)
        self._averaging = DualAveraging(prox_center=math.log(10.0 * self.step_size))


def windows(length: int) -> tuple[int, list[int]]:
    """The first transition that counts for a mass matrix, and those after which it is renewed.

    Args:
        length: Transitions of warmup; below 20 there is no window.
    """
    if length < 20:
        return 0, []
    first, last, size = (75, 50, 25) if length >= 150 else (int(0.15 * length), int(0.1 * length), length)
    ends, position, stop = [], first, length - last
    while position < stop:
        # A window that would leave too little for the next, twice as long, takes all that is left.
        position += size if position + 3 * size <= stop else stop - position
        size *= 2
        ends.append(position - 1)
    return first, ends


def reasonable_step_size(acceptance: Callable[[float], float], step_size: float) -> float:
    """A step size at which a single leapfrog is accepted with a probability near 0.8 (Hoffman & Gelman 2014, alg. 4).

    Args:
        acceptance: Mean acceptance probability of one leapfrog of a given step size; 0 where it is NaN.
        step_size: Where the search starts.
    """
    grows = acceptance(step_size) > 0.8
    while _SMALLEST < step_size < _LARGEST:
        step_size *= 2.0 if grows else 0.5
        if (acceptance(step_size) > 0.8) != grows:
            break
    return _clamped(step_size)


def _clamped(step_size: float) -> float:
    return min(max(step_size, _SMALLEST), _LARGEST)
