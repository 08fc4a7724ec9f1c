r"""Distributions of Pyro that lack a cumulative distribution function, with one.

.. math::  P(\mathrm{Poisson}(\lambda) \le k) &= Q(k + 1, \lambda) \\
           P(\mathrm{NegativeBinomial}(r, p) \le k) &= I_{1 - p}(r, k + 1) \\
           P(T_\nu \le t) &= 1 - \tfrac12 I_{\nu / (\nu + t^2)}(\nu / 2, 1/2), \quad t \ge 0,

with the regularized incomplete gamma function Q and beta function I.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.distributions.incomplete_beta import incomplete_beta

__all__ = ["NegativeBinomial", "Poisson", "StudentT", "ZeroInflatedPoisson"]


class Poisson(dist.Poisson):
    """Poisson."""

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``."""
        return torch.special.gammaincc(value.floor() + 1.0, self.rate)


class NegativeBinomial(dist.NegativeBinomial):
    """Negative binomial: counts of successes before ``total_count`` failures."""

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``."""
        failure, success = (-self.logits).sigmoid(), self.logits.sigmoid()
        return incomplete_beta(self.total_count, value.floor() + 1.0, failure, success)


class ZeroInflatedPoisson(dist.ZeroInflatedPoisson):
    """Poisson, or zero with the probability of the gate."""

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``."""
        return self.gate + (1.0 - self.gate) * torch.special.gammaincc(value.floor() + 1.0, self.rate)


class StudentT(dist.StudentT):
    """Student's t, of any location and scale; moments without a selection by values, which no program can have."""

    @property
    def mean(self) -> Tensor:
        """The location, where there is a mean."""
        return torch.where(self.df > 1.0, self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        """Infinite up to two degrees of freedom, and undefined up to one."""
        found = self.scale.square() * self.df / (self.df - 2.0)
        return torch.where(self.df > 2.0, found, torch.where(self.df > 1.0, math.inf, math.nan))

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``."""
        t = (value - self.loc) / self.scale
        ratio = t.square() / self.df
        x, complement = 1.0 / (1.0 + ratio), torch.where(ratio.isinf(), 1.0, ratio / (1.0 + ratio))
        tail = 0.5 * incomplete_beta(0.5 * self.df, x.new_full((), 0.5), x, complement)
        return torch.where(t > 0, 1.0 - tail, tail)
