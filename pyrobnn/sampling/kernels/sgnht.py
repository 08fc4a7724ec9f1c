r"""The stochastic gradient Nosé–Hoover thermostat (Ding et al. 2014).

.. math::  v_{t+1} = (1 - \alpha_t) v_t - \varepsilon \nabla\hat U(\theta_t) + N(0, 2 a \varepsilon T I), \qquad
           \theta_{t+1} = \theta_t + v_{t+1},

.. math::  \alpha_{t+1} = \alpha_t + \kappa \left( \frac{(1 - \alpha_t / 2)\, |v_{t+1}|^2}{P \varepsilon T} - 1 \right).

The friction α, one number for each chain, rises while the velocities are too hot and falls while they are too cold, and
so takes out the noise of minibatches, of whatever strength, as long as it is about the same in all directions.
Velocities are h times the paper's momenta, :math:`\varepsilon = h^2`, α is h times its ξ, and its thermostat has κ =
εT. The factor 1 - α/2 is not in the paper: it is what the velocities of this scheme differ by from those of the
continuous diffusion (:mod:`pyrobnn.sampling.kernels.sghmc`). At equilibrium α is a plus the minibatches' share, with
variance about κ/P.

Left alone the friction moves to its equilibrium in about a/κ steps, often thousands, and the heat of a start far from
the posterior stays in it as long: draws are then too cold. In the first third of warmup the friction is therefore held
at a, which takes heat out within 1/a steps. After that the thermostat reacts with :math:`a^2 / 2`, the fastest without
oscillation; at the end of warmup the friction is set to its mean over the second half, and velocities are drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_number, check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.sampling.kernels.base import Diffusion
from pyrobnn.sampling.kernels.sghmc import velocity_variance

__all__ = ["SGNHT"]


@explained
@dataclass(frozen=True)
class SGNHT(Diffusion):
    r"""SGNHT: SGHMC whose friction is a thermostat.

    Draws have the statistics ``kinetic_temperature`` (T on average) and ``friction`` (α).

    Args:
        step_size: ε, or a schedule of it.
        temperature: T.
        diffusion: a in (0, 1]: the noise that is added, and the friction to start with.
        coupling: κ, how fast the thermostat reacts after warmup (in it a²/2, if that is more); None takes the paper's
            εT.

    Raises:
        ValueError: If an argument is out of its range.
    """

    diffusion: float = 0.1
    coupling: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("diffusion", self.diffusion, 0.0, 1.0, above=True)
        if self.coupling is not None:
            check_positive("coupling", self.coupling)

    def start(self, flat: Tensor, warmup_steps: int) -> dict[str, Tensor]:
        """Velocities from their stationary law, the friction ``[C, 1]`` at ``diffusion``, and its mean in warmup."""
        friction = torch.full_like(flat[:, :1], self.diffusion)
        return {
            "velocity": torch.randn_like(flat) * self._velocity_scale(self.step_size_at(0), self.temperature, friction),
            "friction": friction,
            "mean_friction": torch.zeros_like(friction),
            "warmup": torch.tensor(warmup_steps),
        }

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
        """Five passes over the weights."""
        velocity, friction, warmup = state["velocity"], state["friction"], int(state["warmup"])
        velocity.mul_(1.0 - friction).add_(gradient, alpha=-step_size)
        velocity.add_(noise(), alpha=math.sqrt(2.0 * self.diffusion * step_size * temperature))
        flat.add_(velocity)
        heat = torch.linalg.vecdot(velocity, velocity).unsqueeze(-1) / (velocity.shape[-1] * step_size * temperature)
        coupling = step_size * temperature if self.coupling is None else self.coupling
        if step < warmup:
            self._equilibrate(state, heat, coupling, step, warmup)
        else:
            friction.add_(heat.mul_(1.0 - 0.5 * friction).sub_(1.0), alpha=coupling)
        if step == warmup - 1:
            friction.copy_(state["mean_friction"])
            torch.mul(noise(), self._velocity_scale(step_size, temperature, friction), out=velocity)

    def _equilibrate(self, state: dict[str, Tensor], heat: Tensor, coupling: float, step: int, warmup: int) -> None:
        """The friction of a step of warmup."""
        friction, mean = state["friction"], state["mean_friction"]
        if step < warmup // 3:
            return
        friction.add_(heat.mul_(1.0 - 0.5 * friction).sub_(1.0), alpha=max(coupling, 0.5 * self.diffusion**2))
        friction.clamp_(max=1.0 + 0.5 * self.diffusion)  # beyond it the scheme would be unstable
        if step >= (half := warmup // 2):
            mean.add_(friction - mean, alpha=1.0 / (step - half + 1))

    def _velocity_scale(self, step_size: float, temperature: float, friction: Tensor) -> Tensor:
        """Stationary standard deviations of velocities ``[C, 1]``."""
        return (velocity_variance(step_size, friction) * temperature).sqrt()

    def statistics(self, flat: Tensor, state: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """``kinetic_temperature`` and ``friction``."""
        friction = state["friction"].squeeze(-1)
        squares = state["velocity"].square().mean(-1)
        temperature = squares * (1.0 - 0.5 * friction) / self.step_size_at(step)
        return {"kinetic_temperature": temperature, "friction": friction.clone()}
