r"""The interface of a sampler for :func:`pyrobnn.sample`: the two kinds of kernels, and what a run of one gives.

A kernel is a frozen set of settings, nothing of a run is kept in it. All of them work on flat vectors ``[C, P]`` of
unconstrained values, one row for each of C chains, in the order of the model's
:class:`~pyrobnn.model.layout.Layout`, whose ``split`` and ``constrain`` turn them into site values. The density that is
sampled is that of the unconstrained values, so it has the Jacobians of constrained sites. With the potential

.. math::  U(\theta) = -\log p(D, w(\theta)) - \log\left|\det \partial w / \partial\theta\right|

the stationary law is :math:`\exp(-U(\theta) / T)` at temperature T.

* :class:`StochasticGradientKernel`: one :meth:`~StochasticGradientKernel.update` for each minibatch, from an unbiased
  estimate of the gradient of U, which :func:`pyrobnn.sample` takes. :class:`Diffusion` is its usual form.
* :class:`FullBatchKernel`: runs by itself on all data (HMC, NUTS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_positive

__all__ = [
    "ChainResult",
    "Diffusion",
    "FullBatchKernel",
    "Kernel",
    "StochasticGradientKernel",
]


@dataclass(frozen=True)
class ChainResult:
    """What the run of a kernel gives.

    Attributes:
        draws: Kept draws ``[C, S, P]``: unconstrained flat vectors of C chains and S draws each.
        stats: Figures of each draw by name, ``[C, S]`` (energy, acceptance probability, temperature, ...).
    """

    draws: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)


class Kernel:
    """Base of all samplers; subclasses are frozen dataclasses of settings."""


class FullBatchKernel(Kernel):
    """A sampler that uses all data at each step."""

    def run(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        num_samples: int,
        warmup_steps: int,
        thinning: int,
        num_chains: int,
        init: Tensor,
        seed: int | None = None,
        progress: bool = True,
    ) -> ChainResult:
        """Runs all chains.

        Args:
            model: The Pyro model, in the mode in which it is to be evaluated.
            args: Its arguments: all data.
            num_samples: Draws S that are kept of each chain.
            warmup_steps: Transitions before the first of them (adaptation takes place in these).
            thinning: Transitions for each kept draw.
            num_chains: Number C of chains.
            init: Where they start, unconstrained ``[C, P]``, in the order of ``Layout.of(model, example=args)``;
                the potential is finite there.
            seed: For generators of the kernel's own; torch's global random state has been seeded with it already.
            progress: Show a progress bar.
        """
        raise NotImplementedError


class StochasticGradientKernel(Kernel):
    """What follows each gradient in SG-MCMC."""

    def start(self, flat: Tensor, warmup_steps: int) -> dict[str, Tensor]:
        """The kernel's own state (velocities and the like), which a resumed run reads from disk.

        Args:
            flat: Starting values ``[C, P]``.
            warmup_steps: Steps before the first that may be kept.
        """
        return {}

    def update(
        self, flat: Tensor, gradient: Tensor, state: dict[str, Tensor], step: int, noise: Callable[[], Tensor]
    ) -> None:
        """One step of all chains, in place.

        Args:
            flat: Values ``[C, P]``, overwritten by the new ones.
            gradient: An unbiased estimate of the gradient of U at them, ``[C, P]``; may be overwritten.
            state: What :meth:`start` returned, kept up to date in place.
            step: Index of the step, from 0 over the whole run.
            noise: Gives fresh standard normals ``[C, P]`` at each call, which may be overwritten.
        """
        raise NotImplementedError

    def collects(self, step: int) -> bool:
        """Whether the values after this step count toward thinning and may be kept as a draw."""
        return True

    def statistics(self, flat: Tensor, state: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Figures of the draw just made, ``{name: [C]}``."""
        return {}


@dataclass(frozen=True)
class Diffusion(StochasticGradientKernel):
    """A discretized diffusion; subclasses implement :meth:`advance` and say in their docstring what it computes.

    Args:
        step_size: Step size ε of the discretization, or a schedule ``step -> ε`` (:mod:`pyrobnn.schedules`), counted
            from the first step of warmup. U is a sum over all data, so useful sizes shrink like 1/N.
        temperature: Temperature T; the covariance of a Gaussian posterior is multiplied by it.

    Raises:
        ValueError: If an argument is not a positive number.
    """

    step_size: schedules.Schedule
    temperature: float = 1.0

    def __post_init__(self) -> None:
        schedules.resolve("step_size", self.step_size)
        check_positive("temperature", self.temperature)

    def step_size_at(self, step: int) -> float:
        """ε of a step, counted from 0 over the whole run.

        Raises:
            ValueError: If the schedule has ended or gives something that is not positive and finite.
        """
        return schedules.value_at("step_size", self.step_size, step)

    def update(
        self, flat: Tensor, gradient: Tensor, state: dict[str, Tensor], step: int, noise: Callable[[], Tensor]
    ) -> None:
        """One step at the kernel's own step size and temperature."""
        self.advance(flat, gradient, state, step, noise, self.step_size_at(step), self.temperature)

    def advance(
        self,
        flat: Tensor,
        gradient: Tensor,
        state: dict[str, Tensor],
        step: int,
        noise: Callable[[], Tensor],
        step_size: float,
        temperature: float,
    ) -> None:
        """One step as :meth:`update` describes it, at the given step size and temperature (0: no noise)."""
        raise NotImplementedError
