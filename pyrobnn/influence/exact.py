r"""Influence by the exact curvature: the matrix, factored once.

Koh & Liang, *Understanding black-box predictions via influence functions*, 2017. For a few thousand weights; in convex
models (a last layer, logistic regression) it is what leave-one-out retraining gives to first order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.curvature.products import Matrix
from pyrobnn.guides.base import Guide
from pyrobnn.influence.point import PointInfluence
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["Exact", "not_positive_definite"]

_MOST_WEIGHTS = 5_000


@explained
class Exact(PointInfluence):
    """``H⁻¹`` by a Cholesky factorization.

    Args:
        model: The model that was fitted.
        guide: A point, as for :class:`PointInfluence`.
        loader: Training data in a fixed order.
        damping: A number added to the diagonal of the curvature, in its units (nats for the whole data set); the
            prior's precision is in there already.
        matrix: ``"hessian"``, or ``"gauss_newton"``, which is positive definite away from a maximum too.
        sites: The weights that would move; all weights of the network if None.
        batch: How to read batches.
        max_bytes: Budget for gradients of single rows.

    Raises:
        TypeError: As :class:`PointInfluence` says.
        ValueError: As :class:`PointInfluence` says; if there are more than 5,000 weights; when it is used, if the
            curvature has an eigenvalue that is not positive.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide,
        loader: Iterable[Any],
        *,
        damping: float = 0.0,
        matrix: Matrix = "hessian",
        sites: Collection[str] | None = None,
        batch: Reader | None = None,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        check_non_negative("damping", damping)
        super().__init__(model, guide, loader, sites=sites, matrix=matrix, batch=batch, max_bytes=max_bytes)
        if self.products.size > _MOST_WEIGHTS:
            raise ValueError(
                f"sites: the matrix of {self.products.size:,} weights takes as many backward passes, at most "
                f"{_MOST_WEIGHTS:,}; name fewer by sites=, or take influence.ConjugateGradient."
            )
        self.damping = float(damping)
        self._factor: Tensor | None = None

    def solve(self, gradients: Tensor) -> Tensor:
        """``H⁻¹ g``, as :meth:`PointInfluence.solve` says."""
        if self._factor is None:
            eye = torch.eye(self.products.size, device=gradients.device)
            matrix = self.products(eye)
            matrix = 0.5 * (matrix + matrix.T)
            matrix.diagonal().add_(self.damping)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            if failed:
                raise not_positive_definite(float(torch.linalg.eigvalsh(matrix)[0]), self.damping)
            self._factor = factor
        return torch.cholesky_solve(gradients.T, self._factor).T


def not_positive_definite(smallest: float, damping: float) -> ValueError:
    """The error about a curvature with an eigenvalue that is not positive."""
    enough = damping - 1.1 * min(smallest, 0.0) + 1e-3
    return ValueError(
        f"damping: with {damping:g} the curvature is not positive definite (its smallest eigenvalue is "
        f"{smallest:.3g}), so the point is no maximum; pass damping={enough:.2g} or more, matrix='gauss_newton', or a "
        "point that is trained longer."
    )
