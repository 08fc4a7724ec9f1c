r"""Dual activations: second moments of an activation at jointly Gaussian inputs.

For :math:`(u, v)` Gaussian with means 0, variances :math:`a, b` and covariance :math:`c`,

.. math::  \hat\phi(c, a, b) = E[\phi(u)\,\phi(v)], \qquad
           \partial_c \hat\phi(c, a, b) = E[\phi'(u)\,\phi'(v)]

(the second is Price's theorem). ReLU is the arc-cosine kernel of Cho & Saul (2009), erf the arc-sine kernel of Williams
(1997); leaky ReLU follows from the first, GELU by partial integration. The logistic function is a mixture of Gaussian
distribution functions, :math:`\sigma(x) = E_K[\Phi(x / 2K)]` with K Kolmogorov's distribution (Andrews & Mallows 1974),
so a quadrature over K makes of erf and GELU the sigmoid, tanh and SiLU, to 2e-7 at every variance. Any other function
is a series (:mod:`pyrobnn.function_space.hermite`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from pyrobnn.function_space.dual import DualActivation
from pyrobnn.function_space.hermite import HermiteSeries

__all__ = ["ACTIVATIONS", "Erf", "Gelu", "LeakyRelu", "Sigmoid", "Silu", "Tanh"]


def _angle(c: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``√(ab - c²)`` and the angle between u and v, with gradients of 0 where the two are equal."""
    determinant = a * b - c * c
    positive = determinant > 1e-14 * a * b
    root = torch.where(positive, determinant, 1.0).sqrt() * positive
    return root, torch.atan2(root, torch.where(root + c.abs() > 0, c, 1.0))


@dataclass(frozen=True)
class LeakyRelu(DualActivation):
    """``max(x, 0) + slope · min(x, 0)``; ReLU for a slope of 0, the identity for 1."""

    slope: float = 0.0

    def product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The arc-cosine kernel of degree 1, ``(1 - slope)² (√(ab - c²) + c (π - θ)) / 2π + slope c``."""
        root, angle = _angle(c, a, b)
        return (1 - self.slope) ** 2 * (root + c * (math.pi - angle)) / (2 * math.pi) + self.slope * c

    def derivative_product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """That of degree 0."""
        _, angle = _angle(c, a, b)
        return (1 - self.slope) ** 2 * (math.pi - angle) / (2 * math.pi) + self.slope


@dataclass(frozen=True)
class Erf(DualActivation):
    """``erf(x / (√2 width))``; a width of ``1/√2`` is the error function."""

    width: float = math.sqrt(0.5)

    def product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The arc-sine kernel."""
        square = self.width**2
        ratio = c / ((square + a) * (square + b)).sqrt()
        return 2 / math.pi * ratio.clamp(-1, 1).asin()

    def derivative_product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Its derivative by c."""
        square = self.width**2
        return 2 / math.pi * ((square + a) * (square + b) - c * c).rsqrt()


@dataclass(frozen=True)
class Gelu(DualActivation):
    """``x Φ(x)``."""

    def product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """By partial integration; with ``P = E[N(u) N(v)]`` and ``F = E[Φ(u) Φ(v)]``."""
        density, both, share = self._parts(c, a, b)
        return density * (a * b - c * c + c * c * share) + c * both

    def derivative_product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Its derivative by c."""
        density, both, share = self._parts(c, a, b)
        slope = c * density / ((1 + a) * (1 + b) - c * c)
        return slope * (a * b - c * c + c * c * share) + density * (2 * c * share - c) + both

    @staticmethod
    def _parts(c: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outer = (1 + a) * (1 + b)
        density = (outer - c * c).rsqrt() / (2 * math.pi)
        both = 0.25 + (c / outer.sqrt()).clamp(-1, 1).asin() / (2 * math.pi)
        return density, both, 1 / (1 + a) + 1 / (1 + b)


@lru_cache(maxsize=1)
def _widths() -> tuple[tuple[float, float], ...]:
    """Nodes and weights of Kolmogorov's distribution, a Gauss rule in the logarithm (8 nodes: tanh to 2e-7)."""
    import numpy as np
    from scipy.linalg import eigh_tridiagonal
    from scipy.stats import kstwobign

    nodes, weights = np.polynomial.legendre.leggauss(400)
    low, high = 0.15, 6.0
    widths = (nodes + 1) / 2 * (high - low) + low
    mass = weights * kstwobign.pdf(widths)
    mass, logs = mass / mass.sum(), np.log(widths)
    count, diagonal, beside = 8, [], []  # Stieltjes' recursion for the polynomials orthogonal under this mass
    before, now, norm = np.zeros_like(logs), np.ones_like(logs), 0.0
    for _ in range(count):
        center = float((mass * logs * now**2).sum())
        rest = (logs - center) * now - norm * before
        norm = float(np.sqrt((mass * rest**2).sum()))
        diagonal.append(center)
        beside.append(norm)
        before, now = now, rest / norm
    values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside[:-1]))
    return tuple(zip(np.exp(values).tolist(), (vectors[0] ** 2).tolist(), strict=True))


@dataclass(frozen=True)
class Tanh(DualActivation):
    """``tanh(x)``, a mixture of error functions of several widths."""

    def product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The mixture of arc-sine kernels."""
        total = torch.zeros_like(c)
        for wide, mass in _widths():
            for narrow, other in _widths():
                ratio = c * ((wide**2 + a).rsqrt() * (narrow**2 + b).rsqrt())
                total = total + mass * other * ratio.clamp(-1, 1).asin()
        return 2 / math.pi * total

    def derivative_product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Its derivative by c."""
        total = torch.zeros_like(c)
        for wide, mass in _widths():
            for narrow, other in _widths():
                total = total + mass * other * ((wide**2 + a) * (narrow**2 + b) - c * c).rsqrt()
        return 2 / math.pi * total


@dataclass(frozen=True)
class Sigmoid(DualActivation):
    """``1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2``."""

    def product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """That of tanh, whose mean is 0, and the square of the mean."""
        return 0.25 + 0.25 * Tanh().product(c / 4, a / 4, b / 4)

    def derivative_product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Its derivative by c."""
        return Tanh().derivative_product(c / 4, a / 4, b / 4) / 16


@dataclass(frozen=True)
class Silu(DualActivation):
    """``x / (1 + e^-x)``, a mixture of GELUs of several widths."""

    def product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The mixture of their second moments."""
        return self._mixed(Gelu().product, c, a, b, scaled=True)

    def derivative_product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Its derivative by c."""
        return self._mixed(Gelu().derivative_product, c, a, b, scaled=False)

    @staticmethod
    def _mixed(function: Callable[..., Tensor], c: Tensor, a: Tensor, b: Tensor, *, scaled: bool) -> Tensor:
        total = torch.zeros_like(c)
        for first, mass in _widths():
            for second, other in _widths():
                left, right = 2 * first, 2 * second
                found = function(c / (left * right), a / left**2, b / right**2)
                total = total + mass * other * (left * right if scaled else 1.0) * found
        return total


def _leaky(module: nn.Module) -> DualActivation:
    assert isinstance(module, nn.LeakyReLU)
    return LeakyRelu(module.negative_slope)


def _gelu(module: nn.Module) -> DualActivation:
    assert isinstance(module, nn.GELU)
    return Gelu() if module.approximate == "none" else HermiteSeries(module)


_BY_SERIES = (nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Mish, nn.Hardtanh, nn.ReLU6, nn.Softsign, nn.Hardswish)

ACTIVATIONS: dict[type[nn.Module], Callable[[nn.Module], DualActivation]] = {
    nn.ReLU: lambda module: LeakyRelu(),
    nn.LeakyReLU: _leaky,
    nn.Tanh: lambda module: Tanh(),
    nn.Sigmoid: lambda module: Sigmoid(),
    nn.GELU: _gelu,
    nn.SiLU: lambda module: Silu(),
    **dict.fromkeys(_BY_SERIES, HermiteSeries),
}
"""The dual activation of a module, by its class."""
