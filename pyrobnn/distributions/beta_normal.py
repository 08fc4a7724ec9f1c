r"""A Gaussian whose log density is weighted for training, so that its scale does not take the mean's gradient away.

.. math::  \ell(y) = \lfloor \sigma^{2 \beta} \rfloor \log N(y; \mu, \sigma^2),

where brackets stop the gradient (Seitzer et al. 2022). It is no density unless β is 0.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["BetaNormal"]


class BetaNormal(dist.Normal):
    """Normal with weighted log densities.

    Args:
        loc: Means ``[B, ...]``.
        scale: Standard deviations.
        beta: β, from 0 to 1. Targets that are NaN (missing) have log density 0.
        warming: While true, the scale is the root mean square over the data of the errors, without a gradient.
    """

    def __init__(self, loc: Tensor, scale: Tensor, beta: float, warming: Tensor | None) -> None:
        super().__init__(loc, scale, validate_args=False)
        self.beta, self.warming = beta, warming

    def log_prob(self, value: Tensor) -> Tensor:
        """Weighted log density."""
        scale = self.scale
        if self.warming is not None:
            error = (value - self.loc).detach().square().nanmean(0, keepdim=True).sqrt().nan_to_num(1.0)
            tiny = torch.finfo(scale.dtype).tiny ** 0.5
            scale = torch.where(self.warming, error.clamp_min(tiny).expand_as(scale), scale)
        unseen = value.isnan()
        found = dist.Normal(self.loc, scale, validate_args=False).log_prob(value.where(~unseen, self.loc.detach()))
        found = found.masked_fill(unseen, 0.0)
        return found if self.beta == 0.0 else found * scale.detach().pow(2.0 * self.beta)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> BetaNormal:  # type: ignore[override]
        """The same on a larger batch shape."""
        return BetaNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.beta, self.warming)
