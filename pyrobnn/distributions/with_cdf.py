r"""Distributions of Pyro that lack a cumulative distribution function, with one.

.. math::  P(\mathrm{Poisson}(\lambda) \le k) &= Q(k + 1, \lambda) \\
           P(\mathrm{NegativeBinomial}(r, p) \le k) &= I_{1 - p}(r, k + 1) \\
           P(T_\nu \le t) &= 1 - \tfrac12 I_{\nu / (\nu + t^2)}(\nu / 2, 1/2), \quad t \ge 0,

with the regularized incomplete gamma function Q and beta function I.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor

from pyrobnn.core.stirling import log_gamma_ratio
from pyrobnn.distributions.incomplete_beta import incomplete_beta

__all__ = ["NegativeBinomial", "Poisson", "StudentT", "ZeroInflatedPoisson"]

_LARGE = 2.0**40
"""A rate from which on the skewness of counts is below 1e-6."""


class Poisson(dist.Poisson):
    """Poisson, whose log probabilities are computed from the logarithm of its rate, which may be too small for one.

    Args:
        log_rate: Logarithms of rates.
        validate_args: As for every distribution of torch.
    """

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of counts."""
        if self._validate_args:
            self._validate_sample(value)
        return _log_poisson(self.log_rate, value)

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), **options: Any) -> Tensor:
        """Counts, of any rate; options are those of torch's class."""
        return _counts(self.rate.expand(torch.Size(sample_shape) + self.batch_shape), **options)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Poisson:
        """The same on a larger batch shape."""
        return Poisson(self.log_rate.expand(batch_shape), validate_args=False)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``."""
        return torch.special.gammaincc(value.floor() + 1.0, self.rate)


class NegativeBinomial(dist.NegativeBinomial):
    """Negative binomial: counts of successes before ``total_count`` failures."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of counts, to all digits where ``total_count`` is large."""
        if self._validate_args:
            self._validate_sample(value)
        ways = log_gamma_ratio(self.total_count, value).masked_fill(self.total_count + value == 0.0, 0.0)
        each = self.total_count * F.logsigmoid(-self.logits) + value * F.logsigmoid(self.logits)
        return ways - torch.lgamma(value + 1.0) + each

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), **options: Any) -> Tensor:
        """Counts, of any mean; options are those of torch's class."""
        rates = dist.Gamma(self.total_count, (-self.logits).exp(), validate_args=False)
        return _counts(rates.sample(torch.Size(sample_shape), **options), **options)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most ``value``."""
        failure, success = (-self.logits).sigmoid(), self.logits.sigmoid()
        return incomplete_beta(self.total_count, value.floor() + 1.0, failure, success)


class ZeroInflatedPoisson(dist.ZeroInflatedPoisson):
    """Poisson, or zero with the probability of the gate; log probabilities are computed from logarithms.

    Args:
        log_rate: Logarithms of rates.
        gate_logits: Logits of further zeros, of the same shape.
        validate_args: As for every distribution of torch.
    """

    # Rates that are too small for a number are 0.
    arg_constraints: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        **dist.ZeroInflatedPoisson.arg_constraints,
        "rate": constraints.nonnegative,
    }

    def __init__(self, log_rate: Tensor, gate_logits: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), gate_logits=gate_logits, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of counts."""
        if self._validate_args:
            self._validate_sample(value)
        is_zero = value == 0
        closed, open_ = -F.softplus(-self.gate_logits), -F.softplus(self.gate_logits)
        # Both are evaluated everywhere: an infinite rate of one would make the gradient of the other NaN.
        largest = math.log(torch.finfo(self.log_rate.dtype).max) - 1.0
        zero = torch.logaddexp(closed, open_ - self.log_rate.clamp_max(largest).exp())
        other = open_ + _log_poisson(self.log_rate.masked_fill(is_zero, 0.0), value)
        return torch.where(is_zero, zero, other)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Counts, of any rate."""
        shape = torch.Size(sample_shape) + self.batch_shape
        is_gated = torch.bernoulli(self.gate.expand(shape)).bool()
        return _counts(self.rate.expand(shape)).masked_fill(is_gated, 0.0)

    @property
    def mean(self) -> Tensor:
        """The mean; the gate's probability may be 0 where the rate is infinite."""
        return (self.log_rate - F.softplus(self.gate_logits)).exp()

    @property
    def variance(self) -> Tensor:
        """The variance."""
        open_ = self.log_rate - F.softplus(self.gate_logits)
        return open_.exp() + (open_ + self.log_rate - F.softplus(-self.gate_logits)).exp()

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZeroInflatedPoisson:
        """The same on a larger batch shape."""
        log_rate, gate_logits = self.log_rate.expand(batch_shape), self.gate_logits.expand(batch_shape)
        return ZeroInflatedPoisson(log_rate, gate_logits, validate_args=False)

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


def _log_poisson(log_rate: Tensor, value: Tensor) -> Tensor:
    return value * log_rate - log_rate.exp() - torch.lgamma(value + 1.0)


def _counts(rate: Tensor, **options: Any) -> Tensor:
    """Poisson counts; of large rates by the normal distribution, where those of torch overflow and are negative."""
    found = torch.poisson(rate.clamp_max(_LARGE), **options)
    if bool((rate > _LARGE).any()):
        noise = torch.randn(rate.shape, dtype=rate.dtype, device=rate.device, **options)
        spread = rate.sqrt().masked_fill(rate.isinf(), 0.0)  # of infinite rates counts are infinite
        found = torch.where(rate > _LARGE, (rate + spread * noise).round(), found)
    return found
