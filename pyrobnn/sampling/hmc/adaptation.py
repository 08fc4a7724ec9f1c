r"""Adaptation of HMC and NUTS during warmup: a step size of each chain, one mass matrix for all.

Step sizes follow dual averaging (Nesterov 2009; Hoffman & Gelman 2014): from the acceptance probabilities
:math:`α_{c,t}` each seeks the ε at which its own chain's mean is the target τ, by

.. math::  g_{c,t} = τ - \left(λ\, α_{c,t} + (1 - λ)\, \bar α_t\right), \qquad λ = 0.2,

where :math:`\bar α_t` is the mean over chains. All :math:`g_c` vanish on average only where every chain has the target,
so that a chain that starts far away, or lies in a narrower mode, gets a smaller step; in between, the mean makes them
less noisy than each chain's own acceptance would.

The inverse mass matrix is the variance of each coordinate within a chain, the median over chains, in windows that
double in length, as in Stan: a fast phase for step sizes alone, slow windows each of which ends with a new mass matrix,
and a last fast phase. Variances are taken around each chain's own mean, so that chains in different modes do not blow
them up, and the median leaves out one that is still on its way. A dense matrix has the same variances, and correlations
that are the mean of those within each chain. After warmup nothing changes any more, which is what makes the draws those
of a Markov chain.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from pyrobnn.core.arguments import check_positive, check_probability
from pyrobnn.core.moments import RunningMoments

__all__ = ["ChainCovariance", "ChainVariance", "Warmup", "check_step_size", "reasonable_step_size", "windows"]

_LARGEST, _SMALLEST = 1e3, 1e-10
_OWN = 0.2  # weight λ of a chain's own acceptance


class ChainVariance:
    """The variance of each coordinate within chains, from states that come one at a time."""

    def __init__(self) -> None:
        self._moments = RunningMoments()

    def add(self, states: Tensor) -> None:
        """Counts the next state of each chain, ``[C, d]``."""
        self._moments.add(states.unsqueeze(0))

    def regularized(self) -> Tensor:
        """The median over chains ``[d]``, shrunk toward 1e-3 with the weight of five states, as in Stan."""
        variance = self._moments.variance()
        return _shrunk(_median(variance), self._moments.count * len(variance))

    @staticmethod
    def identity(like: Tensor) -> Tensor:
        """What it is before any state was seen, for states ``[d]``."""
        return torch.ones_like(like)


class ChainCovariance:
    """The covariance of coordinates within chains, from states that come one at a time."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, states: Tensor) -> None:
        """Counts the next state of each chain, ``[C, d]``."""
        if not self._count:
            self._mean = torch.zeros_like(states)
            self._products = states.new_zeros(*states.shape, states.shape[-1])
        self._count += 1
        shift = states - self._mean
        self._mean += shift / self._count
        self._products.baddbmm_(shift.unsqueeze(-1), (states - self._mean).unsqueeze(-2))

    def regularized(self) -> Tensor:
        """Variances of :class:`ChainVariance` and correlations averaged over chains ``[d, d]``, shrunk likewise."""
        covariance = self._products / max(self._count - 1, 1)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        scale = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
        correlation = (covariance / scale.unsqueeze(-1) / scale.unsqueeze(-2)).mean(0)
        correlation.diagonal().fill_(1.0)  # it is 0 in a chain that stands still
        typical = _median(variance).sqrt()
        return _shrunk(correlation * typical * typical.unsqueeze(-1), self._count * len(variance))

    @staticmethod
    def identity(like: Tensor) -> Tensor:
        """What it is before any state was seen, for states ``[d]``."""
        return torch.eye(len(like), dtype=like.dtype, device=like.device)


def _median(variance: Tensor) -> Tensor:
    """Over chains, ``[C, d]``; the mean of both in the middle, where their number is even."""
    ordered = variance.sort(dim=0).values
    return 0.5 * (ordered[(len(variance) - 1) // 2] + ordered[len(variance) // 2])


def _shrunk(found: Tensor, seen: int) -> Tensor:
    """Variances ``[d]`` or a covariance ``[d, d]`` of that many states, shrunk toward 1e-3 with the weight of five."""
    shift = 5e-3 if found.dim() == 1 else 5e-3 * torch.eye(len(found), dtype=found.dtype, device=found.device)
    return (found * seen + shift) / (seen + 5.0)


class Warmup:
    """What the next transition of warmup is to use.

    Args:
        length: Transitions of warmup.
        start: The first states ``[C, d]``.
        step_size: The first step sizes ``[C]``.
        target: Acceptance probability that each chain's step size aims at.
        adapts_step_size: Whether step sizes adapt.
        adapts_mass: Whether the mass matrix does.
        estimator: What it is set from: :class:`ChainVariance`, or for a dense one :class:`ChainCovariance`.
        find: From an inverse mass matrix and step sizes to those to begin again with, after each new matrix.

    Attributes:
        step_size: ε of each chain ``[C]``.
        typical_step_size: Their median, on the scale of logarithms.
        inverse_mass: The inverse mass matrix: its diagonal ``[d]``, or dense ``[d, d]``.
    """

    def __init__(
        self,
        length: int,
        start: Tensor,
        step_size: Tensor,
        *,
        target: float,
        adapts_step_size: bool,
        adapts_mass: bool,
        estimator: type[ChainVariance] | type[ChainCovariance] = ChainVariance,
        find: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.inverse_mass = estimator.identity(start[0])
        self.target, self.length, self.find = target, length, find
        self.adapts_step_size = adapts_step_size and length > 0
        self.first, self.ends = windows(length) if adapts_mass else (0, [])
        self._new_estimator = estimator
        self._variance = estimator()
        self._set(step_size)
        if self.adapts_step_size:
            self._restart()

    def update(self, index: int, states: Tensor, acceptance: Tensor) -> None:
        """Learns from transition ``index`` of warmup: its states ``[C, d]`` and acceptance probabilities ``[C]``."""
        if self.adapts_step_size:
            self._averaging.step(self.target - torch.lerp(acceptance.mean(), acceptance, _OWN))
            self._set(self._averaging.get_state()[0].exp())
        if self.ends and self.first <= index <= self.ends[-1]:
            self._variance.add(states)
        if index in self.ends:
            self.inverse_mass = self._variance.regularized()
            self._variance = self._new_estimator()
            if self.adapts_step_size:
                self._restart()
        if self.adapts_step_size and index == self.length - 1:
            self._set(self._averaging.get_state()[1].exp())

    def _restart(self) -> None:
        self._set(self.find(self.inverse_mass, self.step_size))
        self._averaging = DualAveraging(prox_center=(10.0 * self.step_size).log())

    def _set(self, step_size: Tensor) -> None:
        self.step_size = step_size.clamp(_SMALLEST, _LARGEST)
        ordered = self.step_size.sort().values
        self.typical_step_size = float((ordered[(len(ordered) - 1) // 2] * ordered[len(ordered) // 2]).sqrt())


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


def reasonable_step_size(acceptance: Callable[[Tensor], Tensor], step_size: Tensor) -> Tensor:
    """Step sizes at which single leapfrogs are accepted with a probability near 0.8 (Hoffman & Gelman 2014, alg. 4).

    Args:
        acceptance: Acceptance probabilities ``[C]`` of one leapfrog of given step sizes ``[C]``; 0 where one is NaN.
        step_size: Where the search starts ``[C]``.
    """
    grows = acceptance(step_size) > 0.8
    factor = torch.where(grows, 2.0, 0.5).to(step_size)
    searches = torch.ones_like(grows)
    while bool(searches.any()):
        step_size = torch.where(searches, step_size * factor, step_size)
        is_inside = (step_size > _SMALLEST) & (step_size < _LARGEST)
        searches = searches & is_inside & ((acceptance(step_size) > 0.8) == grows)
    return step_size.clamp(_SMALLEST, _LARGEST)


def check_step_size(step_size: float | None, adapts: bool, target_accept: float) -> None:
    """Refuses settings of step sizes that no warmup can begin with.

    Raises:
        ValueError: If one is out of range, or ``step_size`` is None and must not adapt.
    """
    if step_size is not None:
        check_positive("step_size", step_size)
    elif not adapts:
        raise ValueError("step_size: it is None and does not adapt; pass one, or adapt_step_size=True.")
    check_probability("target_accept", target_accept)
