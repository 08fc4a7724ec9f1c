r"""Kinetic energies of Hamiltonian dynamics: :math:`K(p) = \tfrac12 p^\top M^{-1} p` with a diagonal or a dense matrix.

A metric has momenta :math:`p \sim N(0, M)`, velocities :math:`M^{-1} p` and leapfrogs, for all chains at once. With
:math:`M^{-1} = L L^\top` and standard normal :math:`z`, momenta are :math:`L^{-\top} z`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.sampling.hmc.adaptation import reasonable_step_size
from pyrobnn.sampling.hmc.leapfrog import Leapfrogs, State

__all__ = ["DenseMetric", "DiagonalMetric", "Metric", "finite_or_refused", "first_step_size"]


class Metric:
    """Base of both metrics.

    Args:
        inverse_mass: The inverse mass matrix, ``[d]`` or ``[d, d]``.
    """

    compiles: bool
    """Whether its leapfrogs can be compiled."""

    def __init__(self, inverse_mass: Tensor) -> None:
        self.inverse_mass = inverse_mass

    def momentum(self, noise: Tensor) -> Tensor:
        """Momenta ``[..., d]`` from standard normals of that shape; their kinetic energy is half their squares' sum."""
        raise NotImplementedError

    def velocity(self, momentum: Tensor) -> Tensor:
        """Velocities of momenta ``[..., d]``."""
        raise NotImplementedError

    def leapfrog(self, leapfrogs: Leapfrogs, state: State, step_size: Tensor) -> State:
        """One leapfrog of step sizes ``[C, 1]``, backward in time where they are negative."""
        raise NotImplementedError

    def kinetic(self, momentum: Tensor) -> Tensor:
        """Kinetic energies ``[...]`` of momenta ``[..., d]``, in nats."""
        return 0.5 * (momentum * self.velocity(momentum)).sum(-1)


class DiagonalMetric(Metric):
    """A diagonal mass matrix."""

    compiles = True

    def momentum(self, noise: Tensor) -> Tensor:
        """Each coordinate is scaled by itself."""
        return noise * self.inverse_mass.rsqrt()

    def velocity(self, momentum: Tensor) -> Tensor:
        """Each coordinate is scaled by itself."""
        return momentum * self.inverse_mass

    def kinetic(self, momentum: Tensor) -> Tensor:
        """A product less than in general."""
        return 0.5 * (momentum.square() @ self.inverse_mass)

    def leapfrog(self, leapfrogs: Leapfrogs, state: State, step_size: Tensor) -> State:
        """Compiled, where ``leapfrogs`` are."""
        return leapfrogs(state, 1, step_size, self.inverse_mass)


class DenseMetric(Metric):
    """A dense mass matrix, one for all chains; a velocity costs a product with it."""

    compiles = False

    def __init__(self, inverse_mass: Tensor) -> None:
        super().__init__(inverse_mass)
        self._factor = torch.linalg.cholesky(inverse_mass.double()).to(inverse_mass)

    def momentum(self, noise: Tensor) -> Tensor:
        """By back substitution in the Cholesky factor."""
        return torch.linalg.solve_triangular(self._factor, noise, upper=False, left=False)

    def velocity(self, momentum: Tensor) -> Tensor:
        """A product with the inverse mass matrix."""
        return momentum @ self.inverse_mass

    def leapfrog(self, leapfrogs: Leapfrogs, state: State, step_size: Tensor) -> State:
        """From the recorded gradient, not compiled."""
        position, momentum, gradient, _ = state
        momentum = torch.addcmul(momentum, step_size, gradient, value=-0.5)
        position = torch.addcmul(position, step_size, self.velocity(momentum))
        value, gradient = leapfrogs.value_and_grad(position)
        return position, torch.addcmul(momentum, step_size, gradient, value=-0.5), gradient, value


def first_step_size(
    metric: Metric, leapfrogs: Leapfrogs, state: State, step_size: Tensor, generator: torch.Generator
) -> Tensor:
    """Step sizes ``[C]`` at which one leapfrog from the states is accepted with a probability near 0.8.

    Args:
        metric: The metric, of which each leapfrog has new momenta.
        leapfrogs: Computes leapfrogs.
        state: Where chains are.
        step_size: Where the search starts ``[C]``.
        generator: Of the momenta.
    """
    position, _, gradient, value = state

    def acceptance(tried: Tensor) -> Tensor:
        noise = torch.empty_like(position).normal_(generator=generator)
        begin = position, metric.momentum(noise), gradient, value
        _, momentum, _, after = metric.leapfrog(leapfrogs, begin, tried.unsqueeze(-1))
        error = after + metric.kinetic(momentum) - value - 0.5 * noise.square().sum(-1)
        return finite_or_refused(error).clamp(min=0.0).neg().exp()

    return reasonable_step_size(acceptance, step_size)


def finite_or_refused(error: Tensor) -> Tensor:
    """The energy error, infinite where it is no number or the potential fell to minus infinity."""
    return error.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
