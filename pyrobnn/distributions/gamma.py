r"""The gamma distribution of a concentration α and the logarithm of a mean m, either of any size.

.. math::  \ln p(y) = -\alpha (e^d - 1 - d) + \alpha \ln \alpha - \alpha - \ln \Gamma(\alpha) - \ln y,
           \qquad d = \ln y - \ln m.

The rate α / m may be too small or too large for a number where this is none of either.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyrobnn.core.stirling import LARGE, log_gamma_remainder

__all__ = ["Gamma"]


class Gamma(dist.Gamma):
    """Gamma, whose log densities are computed from the logarithm of its mean.

    Args:
        concentration: Concentrations, positive.
        log_mean: Logarithms of means, of the same shape.
        validate_args: As for every distribution of torch.
    """

    # Rates that are too small for a number are 0.
    arg_constraints: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        **dist.Gamma.arg_constraints,
        "rate": constraints.nonnegative,
    }

    def __init__(self, concentration: Tensor, log_mean: Tensor, validate_args: bool | None = None) -> None:
        self.log_mean = log_mean
        super().__init__(concentration, concentration * (-log_mean).exp(), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """The variance."""
        return (2.0 * self.log_mean - self.concentration.log()).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of positive numbers; minus infinity where it is below the range of the dtype."""
        if self._validate_args:
            self._validate_sample(value)
        alpha, log_value = self.concentration, value.log()
        d = log_value - self.log_mean
        # α e^d may be a number where e^d is none. Both branches are evaluated everywhere, so each is kept in range:
        # an infinite number of one would make the gradient of the other NaN.
        largest = math.log(torch.finfo(d.dtype).max) - 0.01
        exponent = torch.where(d > largest, alpha.detach(), alpha).log() + d  # e^d, its slope, is no number there
        far = d > 1.0
        beyond = exponent > largest
        near = alpha * torch.expm1(d.masked_fill(far, 0.0))
        apart = exponent.masked_fill(~far | beyond, 0.0).exp() - alpha
        excess = torch.where(far, apart, near) - alpha * d  # α (e^d - 1 - d)
        return (_log_normalizer(alpha) - excess - log_value).masked_fill(far & beyond, -math.inf)

    def rsample(self, sample_shape: Any = (), **options: Any) -> Tensor:  # type: ignore[override]
        """Positive numbers, differentiable in both parameters; options are those of torch's class."""
        unit = dist.Gamma(self.concentration, torch.ones_like(self.concentration), validate_args=False)
        found: Tensor = (
            unit.rsample(torch.Size(sample_shape), **options) * (self.log_mean - self.concentration.log()).exp()
        )
        return found.clamp_min(torch.finfo(found.dtype).tiny)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Gamma:
        """The same on a larger batch shape."""
        return Gamma(self.concentration.expand(batch_shape), self.log_mean.expand(batch_shape), validate_args=False)


def _log_normalizer(alpha: Tensor) -> Tensor:
    """``α ln α - α - ln Γ(α)``, whose terms cancel for a large α."""
    large = alpha > LARGE
    big, small = alpha.clamp_min(LARGE), alpha.masked_fill(large, 1.0)
    series = 0.5 * (big / (2.0 * math.pi)).log() - log_gamma_remainder(big)
    return torch.where(large, series, small * small.log() - small - torch.lgamma(small))
