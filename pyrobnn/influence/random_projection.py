r"""Influence in a random subspace of the weights, in the style of TRAK.

With a random matrix :math:`S [n, k]` of k columns,

.. math::  I_{up} \approx -(S^\top \nabla L(z_t))^\top (S^\top H S)^{-1} (S^\top \nabla L(z_n)).

``kernel="gauss_newton"`` takes for H the Gauss–Newton matrix with the prior's curvature; with k = n it is exact.
``kernel="trak"`` is that of Park et al., *TRAK: attributing model behavior at scale*, 2023: features
:math:`\phi_n = S^\top \nabla f(z_n)` of the margin :math:`f = \log\frac{p}{1-p}`, scores
:math:`\tau = \phi_t^\top (\Phi^\top \Phi)^{-1} \phi_n (1 - p_n)`. Since :math:`\nabla f = -\nabla L / (1 - p)`, the
change of the loss that τ stands for, :math:`-(1 - p_t)\,\tau`, is the formula above with
:math:`H = \sum_n \nabla L_n \nabla L_n^\top / (1 - p_n)^2`. The paper averages scores over several fits: average
results over guides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_int, check_non_negative, check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.guides.base import Guide
from pyrobnn.influence.exact import not_positive_definite
from pyrobnn.influence.point import PointInfluence
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["RandomProjection"]

Kernel = Literal["gauss_newton", "trak"]


@explained
class RandomProjection(PointInfluence):
    """``S (Sᵀ H S)⁻¹ Sᵀ g``.

    Args:
        model: The model that was fitted.
        guide: A point, as for :class:`PointInfluence`.
        loader: Training data in a fixed order.
        dim: Number k of columns; all weights if there are no more.
        kernel: Which H: ``"gauss_newton"``, or ``"trak"`` for classes with one label per row.
        damping: A number added to the diagonal of ``SᵀHS``. ``"trak"`` needs some where k is above the number of rows.
        seed: Fixes S; torch's random state is left alone.
        sites: The weights that would move; all weights of the network if None.
        batch: How to read batches.
        max_bytes: Budget for gradients of single rows.

    Raises:
        TypeError: As :class:`PointInfluence` says.
        ValueError: As :class:`PointInfluence` says; if a number is out of range, or ``"trak"`` does not fit the
            likelihood; when it is used, if the projected curvature is singular.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide,
        loader: Iterable[Any],
        *,
        dim: int = 512,
        kernel: Kernel = "gauss_newton",
        damping: float = 0.0,
        seed: int = 0,
        sites: Collection[str] | None = None,
        batch: Reader | None = None,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        check_positive_int("dim", dim)
        check_non_negative("damping", damping)
        check_int("seed", seed, 0)
        if kernel not in ("gauss_newton", "trak"):
            raise ValueError(f"kernel: expected 'gauss_newton' or 'trak', got {kernel!r}.")
        super().__init__(model, guide, loader, sites=sites, matrix="gauss_newton", batch=batch, max_bytes=max_bytes)
        if kernel == "trak" and not isinstance(model.likelihood, ClassLikelihood):
            raise ValueError(
                f"kernel: 'trak' is made of the margins of classes, which {type(model.likelihood).__name__} has not; "
                "take 'gauss_newton'."
            )
        self.damping, self.kernel = float(damping), kernel
        point = self.products.log_joint.point
        size, generator = self.products.size, torch.Generator().manual_seed(seed)
        self.columns = torch.eye(size, dtype=torch.float64)
        if dim < size:
            self.columns = torch.randn(size, dim, generator=generator, dtype=torch.float64) / dim**0.5
        self.columns = self.columns.to(point.device)
        self._factor: Tensor | None = None

    def solve(self, gradients: Tensor) -> Tensor:
        """``S (Sᵀ H S)⁻¹ Sᵀ g``, as :meth:`PointInfluence.solve` says."""
        if self._factor is None:
            matrix = self._trak() if self.kernel == "trak" else self.products(self.columns.T) @ self.columns
            matrix = 0.5 * (matrix + matrix.T)
            matrix.diagonal().add_(self.damping)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            smallest, largest = (float(value) for value in torch.linalg.eigvalsh(matrix)[[0, -1]])
            if failed or smallest <= len(matrix) * torch.finfo(matrix.dtype).eps * largest:
                raise not_positive_definite(min(smallest, 0.0), self.damping)
            self._factor = factor
        return torch.cholesky_solve((gradients @ self.columns).T, self._factor).T @ self.columns.T

    def _trak(self) -> Tensor:
        """``Φᵀ Φ``."""
        total = self.columns.new_zeros(2 * self.columns.shape[1:])
        for own in self.data.batches:
            features = self._gradients(own, "loader").double() @ self.columns
            wrong = (-torch.expm1(-self._losses(own))).clamp_min(1e-12)  # 1 - p
            scaled = features / wrong.unsqueeze(1)
            total += scaled.T @ scaled
        return total
