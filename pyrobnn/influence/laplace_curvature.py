r"""Influence by the curvature of a fitted Laplace guide: :math:`I_{up} = -\nabla L(z_t)^\top \Sigma \nabla L(z_n)`.

The covariance Σ of the Gaussian around the mode is the inverse of Gauss–Newton curvature and prior precision. So each
structure of :class:`~pyrobnn.guides.Laplace` is a method: the full matrix (which is the Hessian for networks linear in
their weights), a last layer, Kronecker factors (the K-FAC influence of Grosse et al. 2023), the diagonal; and the
prior's precision may be tuned by the evidence. Weights that the structure does not cover stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.influence.point import PointInfluence
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["LaplaceCurvature"]


@explained
class LaplaceCurvature(PointInfluence):
    """``Σ g`` of a fitted Laplace guide.

    Args:
        model: The model that was fitted.
        guide: A :class:`~pyrobnn.guides.Laplace` guide after its ``fit``, which is not repeated later.
        loader: Training data in a fixed order.
        batch: How to read batches.
        max_bytes: Budget for gradients of single rows.

    Raises:
        TypeError: If the guide has no curvature; or as :class:`PointInfluence` says.
        RuntimeError: If it was not fitted.
        ValueError: As :class:`PointInfluence` says.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide,
        loader: Iterable[Any],
        *,
        batch: Reader | None = None,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        check_guide(model, guide)
        linearization = guide.linearization()  # refuses a Laplace guide that was not fitted
        if linearization is None:
            raise TypeError(
                f"guide: expected a fitted Laplace guide, whose curvature is used, got a {type(guide).__name__}; for a "
                "point take influence.Exact."
            )
        covered = linearization.covered
        super().__init__(model, guide, loader, sites=covered, matrix="gauss_newton", batch=batch, max_bytes=max_bytes)
        self._product = linearization.product

    @torch.no_grad()
    def solve(self, gradients: Tensor) -> Tensor:
        """``Σ g``, as :meth:`PointInfluence.solve` says."""
        return self._product(gradients.to(self.products.log_joint.point)).double()
