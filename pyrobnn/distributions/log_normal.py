"""The log-normal distribution, with a variance that is a number wherever it can be one."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["LogNormal"]


class LogNormal(dist.LogNormal):
    r"""Log-normal, of variance :math:`e^{2 \mu + \sigma^2} (e^{\sigma^2} - 1)`; torch's is NaN if one factor is 0 and
    the other infinite."""

    @property
    def variance(self) -> Tensor:
        """The variance."""
        square = self.scale.square()
        found: Tensor = (2.0 * (self.loc + square) + (-torch.expm1(-square)).log()).exp()
        return found
