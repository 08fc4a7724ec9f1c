r"""Influence by LiSSA: the Neumann series of ``H⁻¹ g`` with the curvature of one batch in each term.

.. math::  h_{j+1} = g + (I - H_{b(j)} / \sigma) h_j, \qquad H^{-1} g \approx h_J / \sigma,

where :math:`H_b` is the curvature of batch b, scaled to the data set, with the prior. It converges where σ is above all
eigenvalues; the slowest direction needs about ``σ / λ_min`` steps. Agarwal, Bullins & Hazan (2017); for influence Koh &
Liang (2017). With one batch it is a gradient descent on the quadratic, which conjugate gradients always beat; it pays
where one pass over the data costs more than many batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_int, check_non_negative, check_positive, check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.curvature.products import Matrix
from pyrobnn.guides.base import Guide
from pyrobnn.influence.exact import not_positive_definite
from pyrobnn.influence.point import PointInfluence
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["LiSSA"]

_POWER_STEPS = 30
_MARGIN = 1.2  # σ over the largest eigenvalue that was found
_EXPLODED = 1e6


@explained
class LiSSA(PointInfluence):
    """``H⁻¹ g`` by a stochastic Neumann series.

    Args:
        model: The model that was fitted.
        guide: A point, as for :class:`PointInfluence`.
        loader: Training data in a fixed order; its batches are those of the terms.
        damping: A number added to the diagonal of the curvature, in nats for the whole data set.
        matrix: ``"gauss_newton"``, of which batches have no negative eigenvalue, or ``"hessian"``.
        depth: Number J of terms.
        repeats: Series that are averaged.
        scale: σ; None takes 1.2 times the largest eigenvalue over the batches, by 30 power iterations each.
        tolerance: Length of the residual ``H x - g`` relative to that of g above which a warning gives it.
        seed: Fixes the order of batches; torch's random state is left alone.
        sites: The weights that would move; all weights of the network if None.
        batch: How to read batches.
        max_bytes: Budget for gradients of single rows.

    Raises:
        TypeError: As :class:`PointInfluence` says.
        ValueError: As :class:`PointInfluence` says; if a number is out of range; when it is used, if the series
            diverges.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide,
        loader: Iterable[Any],
        *,
        damping: float = 0.0,
        matrix: Matrix = "gauss_newton",
        depth: int = 1000,
        repeats: int = 1,
        scale: float | None = None,
        tolerance: float = 0.1,
        seed: int = 0,
        sites: Collection[str] | None = None,
        batch: Reader | None = None,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        check_non_negative("damping", damping)
        check_positive_int("depth", depth)
        check_positive_int("repeats", repeats)
        if scale is not None:
            check_positive("scale", scale)
        check_positive("tolerance", tolerance)
        check_int("seed", seed, 0)
        super().__init__(model, guide, loader, sites=sites, matrix=matrix, batch=batch, max_bytes=max_bytes)
        self.damping, self.depth, self.repeats, self.tolerance = float(damping), depth, repeats, tolerance
        self.scale, self.seed = scale, seed

    def solve(self, gradients: Tensor) -> Tensor:
        """``H⁻¹ g``, as :meth:`PointInfluence.solve` says."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.scale is None:
            self.scale = _MARGIN * max(self._largest_eigenvalue(index, generator) for index in self._indices())
        total = torch.zeros_like(gradients)
        limit = _EXPLODED * float(gradients.norm()) * self.depth
        for _ in range(self.repeats):
            found = gradients.clone()
            for _ in range(self.depth):
                index = int(torch.randint(self.products.num_batches, (), generator=generator))
                found = gradients + found - self._product(found, index) / self.scale
                if not float(found.norm()) <= limit:
                    raise ValueError(
                        f"scale: the series diverges with {self.scale:.3g}, which must be above the largest eigenvalue "
                        "of each batch's curvature; raise it, or take matrix='gauss_newton'."
                    )
            total += found / self.scale
        solution = total / self.repeats
        self._check_residual(solution, gradients)
        return solution

    def _check_residual(self, solution: Tensor, gradients: Tensor) -> None:
        residual = self.products(solution) + self.damping * solution - gradients
        reached = float((residual.norm(dim=1) / gradients.norm(dim=1)).nan_to_num().max())
        if reached > self.tolerance:
            warnings.warn(
                f"depth: after {self.depth} terms the residual is {reached:.3g} of the gradient, above "
                f"tolerance={self.tolerance:g}; raise depth, repeats, damping or the size of batches.",
                stacklevel=5,
            )

    def _indices(self) -> range:
        return range(self.products.num_batches)

    def _product(self, rows: Tensor, index: int) -> Tensor:
        return self.products(rows, index) + self.damping * rows

    def _largest_eigenvalue(self, index: int, generator: torch.Generator) -> float:
        device = self.products.log_joint.point.device
        vector = torch.randn(1, self.products.size, generator=generator, dtype=torch.float64).to(device)
        value = 0.0
        for _ in range(_POWER_STEPS):
            vector = vector / vector.norm()
            product = self._product(vector, index)
            value = float((vector * product).sum())
            vector = product
        if value <= 0:
            raise not_positive_definite(value, self.damping)
        return value
