r"""Influence by conjugate gradients: ``H⁻¹ g`` from products with H, without the matrix.

Hestenes & Stiefel (1952); for influence Koh & Liang (2017). All right-hand sides advance together and share the graphs
of the data (:class:`~pyrobnn.curvature.products.CurvatureProducts`). In exact arithmetic n iterations are enough; where
eigenvalues cluster, as beside a prior, far fewer.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative, check_positive, check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.curvature.products import Matrix
from pyrobnn.guides.base import Guide
from pyrobnn.influence.exact import not_positive_definite
from pyrobnn.influence.point import PointInfluence
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["ConjugateGradient"]


@explained
class ConjugateGradient(PointInfluence):
    """``H⁻¹ g`` by conjugate gradients.

    Args:
        model: The model that was fitted.
        guide: A point, as for :class:`PointInfluence`.
        loader: Training data in a fixed order.
        damping: A number added to the diagonal of the curvature, in nats for the whole data set.
        matrix: ``"hessian"``, or ``"gauss_newton"``, which is positive definite away from a maximum too.
        tolerance: Length of the residual ``H x - g``, relative to that of g, at which to stop. Products are computed in
            the network's precision, so that less than 1e-6 needs one in double precision.
        max_iterations: Most iterations; beyond them a warning gives the residual.
        sites: The weights that would move; all weights of the network if None.
        batch: How to read batches.
        max_bytes: Budget for gradients of single rows.

    Raises:
        TypeError: As :class:`PointInfluence` says.
        ValueError: As :class:`PointInfluence` says; if a number is out of range; when it is used, if the curvature
            shows an eigenvalue that is not positive.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide,
        loader: Iterable[Any],
        *,
        damping: float = 0.0,
        matrix: Matrix = "hessian",
        tolerance: float = 1e-6,
        max_iterations: int = 1000,
        sites: Collection[str] | None = None,
        batch: Reader | None = None,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        check_non_negative("damping", damping)
        check_positive("tolerance", tolerance)
        check_positive_int("max_iterations", max_iterations)
        super().__init__(model, guide, loader, sites=sites, matrix=matrix, batch=batch, max_bytes=max_bytes)
        self.damping, self.tolerance, self.max_iterations = float(damping), tolerance, max_iterations

    def solve(self, gradients: Tensor) -> Tensor:
        """``H⁻¹ g``, as :meth:`PointInfluence.solve` says."""
        solution, residual, direction = torch.zeros_like(gradients), gradients.clone(), gradients.clone()
        squares = residual.square().sum(1)
        goal = squares * self.tolerance**2
        for _ in range(self.max_iterations):
            active = squares > goal
            if not bool(active.any()):
                break
            product = torch.zeros_like(direction)
            product[active] = self._product(direction[active])
            curvature = (direction * product).sum(1)
            if bool((curvature[active] <= 0).any()):
                raise not_positive_definite(self._smallest_eigenvalue(direction, curvature), self.damping)
            step = torch.where(active, squares / curvature, 0.0).unsqueeze(1)
            solution += step * direction
            residual -= step * product
            before, squares = squares, torch.where(active, residual.square().sum(1), squares)
            ratio = torch.where(active, squares / before, 0.0).unsqueeze(1)
            direction = residual + ratio * direction
        if bool((squares > goal).any()):
            reached = float((squares / gradients.square().sum(1)).nan_to_num().max().sqrt())
            warnings.warn(
                f"max_iterations: after {self.max_iterations} the residual is {reached:.3g} of the gradient, above "
                f"tolerance={self.tolerance:g}; raise max_iterations or damping.",
                stacklevel=4,
            )
        return solution

    def _product(self, rows: Tensor) -> Tensor:
        return self.products(rows) + self.damping * rows

    def _smallest_eigenvalue(self, direction: Tensor, curvature: Tensor) -> float:
        """An estimate by Lanczos iterations, or what the directions show where these do not converge."""
        from scipy.sparse.linalg import LinearOperator, eigsh  # loaded where it is needed

        shown = float((curvature / direction.square().sum(1).clamp_min(1e-300)).min())
        size = self.products.size
        if size < 3:
            return shown

        def times(vector: np.ndarray) -> np.ndarray:
            row = torch.as_tensor(vector.reshape(1, -1), dtype=torch.float64, device=direction.device)
            return self._product(row)[0].cpu().numpy()

        operator = LinearOperator((size, size), matvec=times, dtype=np.float64)
        try:
            found = eigsh(operator, 1, which="SA", v0=np.ones(size), tol=1e-2, maxiter=20, return_eigenvectors=False)
        except Exception:  # ArpackNoConvergence, whose class is not public in all versions
            return shown
        return min(shown, float(found[0]))
