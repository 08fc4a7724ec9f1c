"""The distribution of a weight whose columns are dropped at random."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["DroppedColumns"]


class DroppedColumns(dist.TorchDistribution):
    """``M diag(z)`` with inverted-dropout masks ``z``.

    Args:
        loc: M, of the site's shape.
        columns: The column of each element, in all the columns there are.
        keep: Probability of keeping each column.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, loc: Tensor, columns: Tensor, keep: Tensor) -> None:
        self.loc, self.columns, self.keep = loc, columns, keep
        super().__init__(event_shape=loc.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All real tensors of the shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """M."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """``M² p / (1 - p)``."""
        return self.loc.square() * (1.0 / self.keep - 1.0)[self.columns]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``[*sample_shape, *shape]`` with gradients to M."""
        keep = self.keep.expand(*sample_shape, -1)
        return self.loc * (torch.bernoulli(keep) / keep)[..., self.columns]

    def log_prob(self, value: Tensor) -> Tensor:
        """Refused: there is none.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("dropped columns have no density")
