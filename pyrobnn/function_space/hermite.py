r"""HermiteSeries: second moments of any activation, by Mehler's formula.

With the Hermite polynomials :math:`h_k`, orthonormal under the standard normal, and
:math:`\alpha_k(a) = E[\phi(\sqrt a\, s)\, h_k(s)]`,

.. math::  E[\phi(u)\phi(v)] = \sum_k \alpha_k(a)\, \alpha_k(b)\, \rho^k, \qquad \rho = c / \sqrt{ab} .

By Parseval's identity :math:`E[\phi(u)^2] = \sum_k \alpha_k(a)^2`, so what a finite series leaves out is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.dual import DualActivation

__all__ = ["HermiteSeries"]

_TINY = 1e-300


@explained
@dataclass(frozen=True)
class HermiteSeries(DualActivation):
    """Any function of one number; its coefficients are found by quadrature.

    Args:
        function: The activation, applied to tensors in double precision; a kink at 0 is integrated exactly.
        terms: Terms of the series.
        tolerance: Largest share of a second moment that the terms left out may have.

    Raises:
        TypeError: If ``function`` is no function.
        ValueError: If ``terms`` is no positive int, or ``tolerance`` not positive.
    """

    function: Callable[[Tensor], Tensor]
    terms: int = 96
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, type):
            raise TypeError(f"function: expected a function of a tensor, such as torch.sin, got {self.function!r}.")
        check_positive_int("terms", self.terms)
        check_positive("tolerance", self.tolerance, "share")

    def product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Mehler's series."""
        left, right, rho = *self._coefficients(a, b), c / (a * b).sqrt().clamp_min(_TINY)
        self._check(left, right, rho, a, b)
        total = left[..., -1] * right[..., -1]
        for k in range(self.terms - 2, -1, -1):
            total = total * rho + left[..., k] * right[..., k]
        return total

    def derivative_product(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Its derivative by c, term by term."""
        scale = (a * b).sqrt().clamp_min(_TINY)
        left, right, rho = *self._coefficients(a, b), c / scale
        total = (self.terms - 1) * left[..., -1] * right[..., -1]
        for k in range(self.terms - 2, 0, -1):
            total = total * rho + k * left[..., k] * right[..., k]
        return total / scale

    def square(self, a: Tensor) -> Tensor:
        """By quadrature: the series converges slowly where the two inputs are one."""
        nodes, weights, _ = _hermite_rule(self.terms)
        return (self.function(a.sqrt().unsqueeze(-1) * nodes.to(a.device)).square() * weights.to(a.device)).sum(-1)

    def _coefficients(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        nodes, weights, basis = (tensor.to(a.device) for tensor in _hermite_rule(self.terms))
        weighted = weights.unsqueeze(-1) * basis
        left, right = (self.function(v.sqrt().unsqueeze(-1) * nodes) @ weighted for v in (a, b))
        return left, right

    def _check(self, left: Tensor, right: Tensor, rho: Tensor, a: Tensor, b: Tensor) -> None:
        with torch.no_grad():
            moments = self.square(a), self.square(b)
            rests = [
                (1 - coefficients.square().sum(-1) / moment.clamp_min(_TINY)).clamp_min(0.0)
                for coefficients, moment in zip((left, right), moments, strict=True)
            ]
            off = rho.abs().where(rho.abs() < 1 - 1e-9, 0.0)  # equal inputs have `square`
            worst = float(((rests[0] * rests[1]).sqrt() * off**self.terms).max()) if rho.numel() else 0.0
        if worst > self.tolerance:
            raise ValueError(
                f"activations: the series of {self.function!r} leaves out up to {worst:.1e} of a second moment, beyond "
                f"{self.tolerance:.0e}; pass a DualActivation of it, or a HermiteSeries with more terms."
            )


@lru_cache(maxsize=4)
def _hermite_rule(terms: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes [Q] and weights of the standard normal (panels of Gauss–Legendre), and ``h_k`` there, ``[Q, terms]``."""
    import numpy as np

    points, mass = np.polynomial.legendre.leggauss(20)
    edges = torch.linspace(-14.0, 14.0, 57, dtype=torch.float64)  # 0 is an edge
    half = (edges[1:] - edges[:-1]) / 2
    nodes = (edges[:-1, None] + half[:, None] * (1 + torch.as_tensor(points))).flatten()
    weights = (
        (half[:, None] * torch.as_tensor(mass)).flatten() * torch.exp(-nodes.square() / 2) / math.sqrt(2 * math.pi)
    )
    basis = [torch.ones_like(nodes), nodes]
    for k in range(1, terms - 1):
        basis.append((nodes * basis[k] - math.sqrt(k) * basis[k - 1]) / math.sqrt(k + 1))
    return nodes, weights, torch.stack(basis[:terms], -1)
