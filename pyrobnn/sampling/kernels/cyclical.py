r"""Cyclical SG-MCMC: cSGLD and cSGHMC (Zhang, Li, Zhang, Chen & Wilson 2020).

.. math::  \varepsilon_t = \frac{\varepsilon}{2} \left( 1 + \cos(\pi r_t) \right), \qquad r_t = \frac{t \bmod L}{L}.

Each cycle of L steps begins at the largest step size. Its first part, :math:`r_t < \beta`, explores: plain gradient
steps without noise, from which no draw is kept, find another mode. The rest samples it with the kernel's own noise at
small steps. Modes count by how many cycles end in them, which need not be their posterior mass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pyrobnn.core.arguments import check_number, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.schedules import CosineCycles
from pyrobnn.sampling.kernels.base import Diffusion, StochasticGradientKernel
from pyrobnn.sampling.kernels.sgnht import SGNHT

__all__ = ["Cyclical"]


@explained
@dataclass(frozen=True)
class Cyclical(StochasticGradientKernel):
    """A kernel in cycles: ``Cyclical(SGLD(ε), cycle_length=1000)`` is cSGLD; with ``SGHMC`` it is cSGHMC.

    Draws have the statistic ``cycle``, the index of their cycle. Choose ``thinning`` so that each cycle gives a few:
    ``(1 - exploration) * cycle_length / thinning``.

    Args:
        kernel: The kernel; its step size is that at the beginning of a cycle.
        cycle_length: Steps L of a cycle.
        exploration: β, the share of a cycle without noise and draws, from 0 to below 1.

    Raises:
        TypeError: If the kernel is of another kind.
        ValueError: If an argument is out of its range, or the kernel has a schedule of its own.
    """

    kernel: Diffusion
    cycle_length: int
    exploration: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Diffusion) or isinstance(self.kernel, SGNHT):
            raise TypeError(
                f"kernel: expected SGLD, PreconditionedSGLD or SGHMC, got {type(self.kernel).__name__}"
                f"{', whose thermostat has no steps without noise' if isinstance(self.kernel, SGNHT) else ''}."
            )
        if callable(self.kernel.step_size):
            raise ValueError("kernel: its step_size is a schedule, which the cycles would override; give a number.")
        check_positive_int("cycle_length", self.cycle_length)
        check_number("exploration", self.exploration, 0.0, 1.0, below=True)
        if not self.collects(self.cycle_length - 1):
            raise ValueError(
                f"exploration: {self.exploration} of {self.cycle_length} steps leaves none to sample; lower it, or "
                "make the cycles longer."
            )

    def step_size_at(self, step: int) -> float:
        """ε of a step."""
        return CosineCycles(self.kernel.step_size_at(step), self.cycle_length)(step)

    def start(self, flat: Tensor, warmup_steps: int) -> dict[str, Tensor]:
        """The kernel's."""
        return self.kernel.start(flat, warmup_steps)

    def update(
        self, flat: Tensor, gradient: Tensor, state: dict[str, Tensor], step: int, noise: Callable[[], Tensor]
    ) -> None:
        """The kernel's step, with this cycle's step size, and without noise where it explores."""
        temperature = self.kernel.temperature if self.collects(step) else 0.0
        self.kernel.advance(flat, gradient, state, step, noise, self.step_size_at(step), temperature)

    def collects(self, step: int) -> bool:
        """Whether the step is in the sampling part of its cycle."""
        return step % self.cycle_length >= self.exploration * self.cycle_length

    def statistics(self, flat: Tensor, state: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """``cycle``."""
        return {"cycle": flat.new_full(flat.shape[:1], step // self.cycle_length)}
