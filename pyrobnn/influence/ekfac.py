r"""Influence by EK-FAC: Kronecker factors' eigenvectors with the eigenvalues that the curvature has along them.

A Kronecker product's eigenvalues assume that a layer's inputs and the gradients of its outputs are independent. In the
same basis U the Gauss–Newton matrix has the diagonal

.. math::  \lambda_i = \big(U^\top G U\big)_{ii} = \sum_{n,c} \big(U^\top J_n^\top r_{nc}\big)_i^2,

which is the best one in Frobenius norm. George et al. (2018); for influence Grosse et al. (2023).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.curvature.blocks import KroneckerBlock
from pyrobnn.curvature.fitting import fill
from pyrobnn.curvature.gauss_newton import weight_rows
from pyrobnn.curvature.gaussian import BlockGaussian
from pyrobnn.curvature.layout import lay_out
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.influence.point import PointInfluence, covered_sites
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["EKFAC"]


@explained
class EKFAC(PointInfluence):
    """``H⁻¹ g`` with Kronecker factors and corrected eigenvalues, of linear and 2-d convolutional layers.

    Weights of other layers stay where they are. Kronecker factors as they are, and a prior precision that was tuned,
    have :class:`LaplaceCurvature` with ``Laplace(model, structure="kronecker")``.

    Args:
        model: The model that was fitted.
        guide: A point, as for :class:`PointInfluence`.
        loader: Training data in a fixed order.
        sites: The weights that would move, whole layers; those of all such layers if None.
        batch: How to read batches.
        max_bytes: Budget for gradients of single rows.

    Raises:
        TypeError: As :class:`PointInfluence` says.
        ValueError: If no layer has Kronecker factors, or a layer's prior has another scale for each output; or as
            :class:`PointInfluence` says.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide,
        loader: Iterable[Any],
        *,
        sites: Collection[str] | None = None,
        batch: Reader | None = None,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        check_guide(model, guide)
        chosen = [site.name for site in covered_sites(model, guide, sites)]
        layout = guide.layout.select(chosen)
        like = next(guide.parameters()).detach().new_zeros(layout.size)
        groups = lay_out(model, layout, "kronecker", None, like)
        names = [site.name for group in groups for site in group.sites]
        super().__init__(model, guide, loader, sites=names, matrix="gauss_newton", batch=batch, max_bytes=max_bytes)
        windows = [layout[name].window for name in names]
        self.columns = torch.cat([torch.arange(window.start, window.stop) for window in windows]).to(like.device)
        self.gaussian = BlockGaussian(like, [group.block for group in groups])
        with self._ready(), torch.no_grad():
            fill(model, self.values, groups, self.data.batches, max_bytes=max_bytes)
            self._correct()

    @torch.no_grad()
    def solve(self, gradients: Tensor) -> Tensor:
        """``H⁻¹ g``, as :meth:`PointInfluence.solve` says."""
        return self.gaussian.covariance_times(gradients.to(self.gaussian.loc), self.columns).double()

    def _correct(self) -> None:
        """Sets the eigenvalues to what the Gauss–Newton matrix has along the eigenvectors, beside the prior."""
        blocks = [block for block in self.gaussian.blocks if isinstance(block, KroneckerBlock)]
        found = [torch.zeros_like(block.eigenvalues, dtype=torch.float64) for block in blocks]
        for own in self.data.batches:
            outputs = self.derivatives.outputs(own.inputs)
            for rows in weight_rows(self.derivatives, own.inputs, outputs, own.weight):
                parts = self.gaussian.by_block(rows.to(self.gaussian.loc), self.columns)
                for total, block, part in zip(found, blocks, parts, strict=True):
                    total += block.project(part).double().square().sum(0)
        for block, eigenvalues in zip(blocks, found, strict=True):
            block.eigenvalues.copy_(eigenvalues)
