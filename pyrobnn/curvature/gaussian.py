"""The Gaussian over a guide's flat vector that its blocks make up; elements in no block are points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyrobnn.curvature.blocks import Block

__all__ = ["BlockGaussian"]


class BlockGaussian(dist.TorchDistribution):
    """Independent blocks around a mean.

    Args:
        loc: Mean, ``[d]``.
        blocks: Gaussians of deviations, each with the positions of its elements.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, blocks: Sequence[Block]) -> None:
        self.loc, self.blocks = loc, list(blocks)
        super().__init__(event_shape=loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``loc``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Marginal variances ``[d]``; zero for points."""
        variance = torch.zeros_like(self.loc)
        for block in self.blocks:
            variance[block.index] = block.variances()
        return variance

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``[*sample_shape, d]``."""
        count = torch.Size(sample_shape).numel()
        draws = self.loc.repeat(count, 1)
        for block in self.blocks:
            draws[:, block.index] += block.deviations(count)
        return draws.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Joint log density of the elements in blocks, for ``[..., d]``."""
        deviation = value - self.loc
        return torch.stack([block.log_prob(deviation[..., block.index]) for block in self.blocks]).sum(0)

    def image_covariance(self, rows: Tensor, columns: Tensor) -> Tensor:
        """``J Σ Jᵀ [..., O, O]`` for ``J [..., O, n]``, whose columns belong to the elements ``columns [n]``."""
        parts = self.by_block(rows, columns)
        halves = [block.half_covariance(part) for block, part in zip(self.blocks, parts, strict=True)]
        return torch.stack([half @ half.mT for half in halves]).sum(0)

    def covariance_times(self, rows: Tensor, columns: Tensor) -> Tensor:
        """``rows Σ [..., n]`` for rows whose columns belong to the elements ``columns [n]``."""
        found = torch.zeros_like(rows)
        place = torch.zeros(len(self.loc), dtype=torch.long, device=rows.device)
        place[columns] = torch.arange(rows.shape[-1], device=rows.device)
        for block, part in zip(self.blocks, self.by_block(rows, columns), strict=True):
            found[..., place[block.index]] = block.covariance_times(part)
        return found

    def by_block(self, rows: Tensor, columns: Tensor) -> list[Tensor]:
        """The columns of ``rows [..., n]`` that each block is about, in its order; arguments as above."""
        column_of = torch.zeros(len(self.loc), dtype=torch.long, device=rows.device)
        column_of[columns] = torch.arange(rows.shape[-1], device=rows.device)
        return [rows[..., column_of[block.index]] for block in self.blocks]
