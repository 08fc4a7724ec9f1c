r"""Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox & Guestrin 2014).

.. math::  v_{t+1} = (1 - \alpha) v_t - \varepsilon_t \nabla\hat U(\theta_t)
           + N(0, 2 (\alpha - \hat\beta)\varepsilon_t T I), \qquad \theta_{t+1} = \theta_t + v_{t+1},

equation 15 of the paper: the underdamped Langevin diffusion, SGD with momentum 1 - α and the noise that its friction
asks for. ε is the square of a time step. For a Gaussian of precision Λ and full gradients the stationary covariance of
θ is :math:`T \Lambda^{-1} (I - \varepsilon\Lambda / (4 - 2\alpha))^{-1}`, whatever the friction; α = 1 is SGLD with
twice the step size. Minibatch noise of covariance V acts as :math:`\hat\beta = \varepsilon V / 2` more noise, which an
estimate of it takes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative, check_number
from pyrobnn.core.explanations import explained
from pyrobnn.sampling.kernels.base import Diffusion

__all__ = ["SGHMC", "velocity_variance"]

Friction = TypeVar("Friction", float, Tensor)


@explained
@dataclass(frozen=True)
class SGHMC(Diffusion):
    r"""SGHMC: ``v ← (1-α)v - ε∇U + N(0, 2(α-β)εT)``, ``θ ← θ + v``.

    Draws have the statistic ``kinetic_temperature``, the velocities' temperature: T but for the noise of minibatches
    and of too large a step.

    Args:
        step_size: ε, or a schedule of it; the learning rate η of SGD on the mean loss is εN.
        temperature: T.
        friction: α in (0, 1], one minus SGD's momentum.
        gradient_noise: β, from 0 to below α: what the minibatches' noise is estimated to add, subtracted from the
            injected noise. It is a share of the friction: half of ε times the variance of a gradient's element.

    Raises:
        ValueError: If an argument is out of its range.
    """

    friction: float = 0.1
    gradient_noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("friction", self.friction, 0.0, 1.0, above=True)
        check_non_negative("gradient_noise", self.gradient_noise)
        if self.gradient_noise >= self.friction:
            raise ValueError(
                f"gradient_noise: expected a number from 0 to below the friction {self.friction}, got "
                f"{self.gradient_noise!r}; a smaller step_size lowers the noise's share."
            )

    def start(self, flat: Tensor, warmup_steps: int) -> dict[str, Tensor]:
        """Velocities from their stationary law."""
        scale = math.sqrt(velocity_variance(self.step_size_at(0), self.friction) * self.temperature)
        return {"velocity": torch.randn_like(flat) * scale}

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
        """Four passes over the weights."""
        velocity = state["velocity"]
        velocity.mul_(1.0 - self.friction).add_(gradient, alpha=-step_size)
        if temperature > 0:
            variance = 2.0 * (self.friction - self.gradient_noise) * step_size * temperature
            velocity.add_(noise(), alpha=math.sqrt(variance))
        flat.add_(velocity)

    def statistics(self, flat: Tensor, state: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """``kinetic_temperature``: the velocities' mean square, over what it is at T = 1."""
        squares = state["velocity"].square().mean(-1)
        return {"kinetic_temperature": squares / velocity_variance(self.step_size_at(step), self.friction)}


def velocity_variance(step_size: float, friction: Friction) -> Friction:
    """Stationary variance of a velocity's element at T = 1, for small steps."""
    return step_size / (1.0 - 0.5 * friction)
