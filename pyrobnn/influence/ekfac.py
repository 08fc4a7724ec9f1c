r"""Influence by EK-FAC: Kronecker factors' eigenvectors with the eigenvalues that the curvature has along them.

A Kronecker product's eigenvalues assume that a layer's inputs and the gradients of its outputs are independent. In the
same basis U the Gauss–Newton matrix has the diagonal

.. math::  \lambda_i = \big(U^\top G U\big)_{ii} = \sum_{n,c} \big(U^\top J_n^\top r_{nc}\big)_i^2,

which is the best one in Frobenius norm. George et al. (2018); for influence Grosse et al. (2023).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.curvature.blocks import Block, KroneckerBlock
from pyrobnn.curvature.gauss_newton import weight_rows
from pyrobnn.curvature.gaussian import BlockGaussian
from pyrobnn.guides.laplace import Laplace
from pyrobnn.influence.laplace_curvature import LaplaceCurvature
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["EKFAC"]


@explained
class EKFAC(LaplaceCurvature):
    """``Σ g`` of a Kronecker-factored Laplace guide, with corrected eigenvalues; the guide is left as it is.

    Args:
        model: The model that was fitted.
        guide: A :class:`~pyrobnn.guides.Laplace` guide with ``structure="kronecker"`` after its ``fit``.
        loader: Training data in a fixed order.
        batch: How to read batches.
        max_bytes: Budget for gradients of single rows.

    Raises:
        TypeError: As :class:`LaplaceCurvature` says.
        RuntimeError: If the guide was not fitted.
        ValueError: If the guide has no Kronecker factors; or as :class:`LaplaceCurvature` says.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Laplace,
        loader: Iterable[Any],
        *,
        batch: Reader | None = None,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        if isinstance(guide, Laplace) and not all(isinstance(block, KroneckerBlock) for block in guide.flat_blocks):
            raise ValueError(
                f"guide: its structure {guide.structure!r} has no Kronecker factors, whose eigenvalues could be "
                "corrected; pass Laplace(model, structure='kronecker'), or take influence.LaplaceCurvature."
            )
        super().__init__(model, guide, loader, batch=batch, max_bytes=max_bytes)
        with self._ready():
            self._correct()

    def _blocks(self, blocks: Sequence[Block]) -> Sequence[Block]:
        return [copy.deepcopy(block) for block in blocks]

    @torch.no_grad()
    def _correct(self) -> None:
        gaussian: BlockGaussian = self.gaussian
        found = [torch.zeros_like(block.spectrum(), dtype=torch.float64) for block in gaussian.blocks]
        for own in self.data.batches:
            outputs = self.derivatives.outputs(own.inputs)
            for rows in weight_rows(self.derivatives, own.inputs, outputs, own.weight):
                parts = gaussian.by_block(rows.to(gaussian.loc), self.columns)
                for total, block, part in zip(found, gaussian.blocks, parts, strict=True):
                    assert isinstance(block, KroneckerBlock)
                    total += block.project(part).double().square().sum(0)
        for block, eigenvalues in zip(gaussian.blocks, found, strict=True):
            assert isinstance(block, KroneckerBlock)
            block.eigenvalues.copy_(eigenvalues)
