r"""A mixture of Gaussians with full covariances.

.. math::  p(y) = \sum_k \pi_k\, N(y; \mu_k, L_k L_k^\top).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrobnn.distributions.gaussian_mixture import GaussianMixture

__all__ = ["CorrelatedGaussianMixture"]


class CorrelatedGaussianMixture(GaussianMixture):
    """Mixtures at each position of an event ``[D, *positions]``, whose D targets are correlated in each component.

    Args:
        logits: Unnormalized log shares ``[*batch, K, 1, *positions]``.
        loc: Means ``[*batch, K, D, *positions]``.
        scale_tril: Lower Cholesky factors ``[*batch, K, D, D, *positions]``, rows first.
        event_dim: Number of dimensions of an event, ``1 + len(positions)``.
        missing: NaN means that a target was not observed; it is integrated out.

    Attributes:
        scale: Standard deviations of the targets ``[*batch, K, D, *positions]``.
    """

    def __init__(
        self, logits: Tensor, loc: Tensor, scale_tril: Tensor, event_dim: int, *, missing: bool = False
    ) -> None:
        self.scale_tril = scale_tril
        scale = scale_tril.square().sum(-event_dim).sqrt()
        super().__init__(logits, loc, scale, event_dim, missing=missing)

    def _component_log_prob(self, value: Tensor, unseen: Tensor | None) -> Tensor:
        residual = (value - self.loc).movedim(self._d, -1)
        factor = self.scale_tril.movedim((self._d - 1, self._d), (-2, -1))  # [*batch, K, *positions, D, D]
        count: Tensor | int = residual.shape[-1]
        if unseen is not None:  # those not observed become independent standard normal numbers at 0
            unseen = unseen.movedim(self._d, -1)
            seen = (~unseen).to(residual)
            residual = residual.masked_fill(unseen, 0.0)
            covariance = factor @ factor.mT * seen.unsqueeze(-1) * seen.unsqueeze(-2)
            factor = torch.linalg.cholesky(covariance + torch.diag_embed(1.0 - seen))
            count = seen.sum(-1)
        white = _solved(factor, residual)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        found = -0.5 * white.square().sum(-1) - log_det - 0.5 * math.log(2.0 * math.pi) * count
        return found.unsqueeze(-1).movedim(-1, self._d)

    def _drawn(self, index: Tensor, shape: torch.Size) -> Tensor:
        loc = self.loc.expand(*shape, *self.loc.shape).gather(self._k, index)
        wide = index.unsqueeze(self._d)  # rows of the factor are before its columns
        wide = wide.expand(*wide.shape[: self._d], *self.event_shape)
        factor = self.scale_tril.expand(*shape, *self.scale_tril.shape).gather(self._k - 1, wide)
        return loc + (factor * torch.randn_like(loc).unsqueeze(self._d - 1)).sum(self._d)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CorrelatedGaussianMixture:
        """The same on a larger batch shape."""
        dims = len(self.event_shape)
        logits, loc = (part.expand(*batch_shape, *part.shape[self._k :]) for part in (self.logits, self.loc))
        factor = self.scale_tril.expand(*batch_shape, *self.scale_tril.shape[self._k - 1 :])
        return CorrelatedGaussianMixture(logits, loc, factor, dims, missing=self.missing)


def _solved(factor: Tensor, residual: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(factor.shape[:-1], residual.shape)
    columns = residual.expand(shape).unsqueeze(-1)
    return torch.linalg.solve_triangular(factor, columns, upper=False).squeeze(-1)
