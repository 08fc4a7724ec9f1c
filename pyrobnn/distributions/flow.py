r"""A normalizing flow: a standard normal vector behind an invertible map.

.. math::  z = T\big((y - \mu) / s\big) \sim N(0, I), \qquad
           \log p(y) = \log N(z; 0, I) + \log |\det T'| - \sum_d \log s_d.

Moments are sums over fixed nodes: in one dimension the trapezoidal rule, :math:`E[y] = \int y(z)\, \phi(z)\, dz`; in
several quasi-random nodes (Sobol), symmetric and of identity covariance, so that they are exact where the map is
affine.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["FlowDistribution", "InvertibleMap", "nodes_and_weights"]

_REACH = 7.0  # of the trapezoidal rule, beyond which a standard normal number has probability 3e-12
_MAX_ELEMENTS = 2**18


class InvertibleMap(Protocol):
    """Increasing in each coordinate given those before it; vectors are the last dimension."""

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``T(x)`` and the log determinant of its derivative, without the last dimension."""
        ...

    def inverse(self, z: Tensor) -> Tensor:
        """``x`` with ``T(x) = z``."""
        ...


class FlowDistribution(dist.TorchDistribution):
    """A flow of D targets, which are one event; a single target is a batch dimension and has a cdf.

    Args:
        transform: The map T, of batches of the shape of ``loc``.
        loc: μ, ``[*batch, D]``.
        scale: s, likewise.
        num_nodes: Number of nodes that mean and variance are computed from.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, transform: InvertibleMap, loc: Tensor, scale: Tensor, num_nodes: int) -> None:
        self.transform, self.loc, self.scale, self.num_nodes = transform, loc, scale, num_nodes
        self._dims = int(loc.shape[-1] > 1)
        self._found: tuple[Tensor, Tensor] | None = None
        shape = loc.shape
        super().__init__(shape[: len(shape) - self._dims], shape[len(shape) - self._dims :], validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All numbers."""
        return constraints.independent(constraints.real, self._dims)

    def _forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        largest = torch.finfo(self.loc.dtype).max
        x = ((value - self.loc) / self.scale).clamp(-largest, largest)  # the maps are not made for infinity
        return self.transform.call_and_ladj(x)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        z, ladj = self._forward(value)
        each = -0.5 * z.square() - 0.5 * math.log(2.0 * math.pi) - self.scale.log()
        return each.sum(-1) + ladj if self._dims else each + ladj.unsqueeze(-1)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``, of a single target.

        Raises:
            NotImplementedError: If there are several.
        """
        if self._dims:
            raise NotImplementedError("FlowDistribution of several targets has no cdf.")
        return torch.special.ndtr(self._forward(value)[0])

    def _backward(self, z: Tensor) -> Tensor:
        return self.loc + self.scale * self.transform.inverse(z)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Targets ``[*sample shape, *batch, D]``."""
        shape = (*sample_shape, *self.loc.shape)
        return self._backward(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def _moments(self) -> tuple[Tensor, Tensor]:
        if self._found is None:
            targets, like = self.loc.shape[-1], self.loc
            nodes, weights = (part.to(like) for part in nodes_and_weights(targets, self.num_nodes))
            center = self._backward(torch.zeros_like(like))  # subtracted first, so that no digits are lost
            first, second = torch.zeros_like(center), torch.zeros_like(center)
            size = max(1, _MAX_ELEMENTS // max(1, like.numel()))
            for z, weight in zip(nodes.split(size), weights.split(size), strict=True):
                shape = (-1, *(1,) * (like.dim() - 1), targets)
                offset = self._backward(z.reshape(shape).expand(-1, *like.shape)) - center
                weighted = weight.reshape(-1, *(1,) * like.dim()) * offset
                first, second = first + weighted.sum(0), second + (weighted * offset).sum(0)
            self._found = center + first, (second - first.square()).clamp_min(0.0)
        return self._found

    @property
    def mean(self) -> Tensor:
        """The mean of each target."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """The variance of each target."""
        return self._moments()[1]

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same on a larger batch shape."""
        shape = (*batch_shape, *self.event_shape)
        return FlowDistribution(self.transform, self.loc.expand(shape), self.scale.expand(shape), self.num_nodes)


@lru_cache(maxsize=16)
def nodes_and_weights(dims: int, count: int) -> tuple[Tensor, Tensor]:
    """Nodes ``[S, dims]`` and weights ``[S]`` of a rule for expectations under a standard normal vector.

    Args:
        dims: Number of dimensions.
        count: Number S of nodes; in several dimensions the next even number above that of the dimensions.
    """
    if dims == 1:
        z = torch.linspace(-_REACH, _REACH, count, dtype=torch.float64)
        weight = (-0.5 * z.square()).exp()
        return z.unsqueeze(-1), weight / weight.sum()
    half = max((count + 1) // 2, dims + 1)
    engine = torch.quasirandom.SobolEngine(dims, scramble=True, seed=0)
    z = torch.special.ndtri(engine.draw(half, dtype=torch.float64).clamp(1e-9, 1.0 - 1e-9))
    factor = torch.linalg.cholesky(z.T @ z / half)
    z = torch.linalg.solve_triangular(factor, z.T, upper=False).T
    return torch.cat([z, -z]), torch.full((2 * half,), 0.5 / half, dtype=torch.float64)
