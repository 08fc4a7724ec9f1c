"""A predictive that is Gaussian, which has closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyrobnn.model.likelihoods.predictions import MomentPrediction, check_level

__all__ = ["GaussianPrediction"]


@dataclass
class GaussianPrediction(MomentPrediction):
    """A Gaussian predictive in closed form: :meth:`log_prob`, :meth:`sample` and :meth:`interval` are exact.

    Attributes:
        covariance: Of the targets of one input, ``[N, D, D]`` for ``D`` targets in the order of the flattened mean.
    """

    covariance: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def log_prob(self, y: Tensor) -> Tensor:
        """Joint log density of each input's targets ``[N]``, in nats; of those that are not missing."""
        self._check(y, self.mean.shape)
        y, covariance, mean = y.to(self.mean).flatten(1), self.covariance, self.mean.flatten(1)
        observed = self.likelihood.observed_mask(y)
        if observed is None:
            return torch.distributions.MultivariateNormal(mean, covariance).log_prob(y)
        # Missing targets become independent standard ones at their mean, whose log density is then taken out.
        both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
        covariance = torch.where(both, covariance, torch.eye(y.shape[1]).to(covariance))
        log_prob = torch.distributions.MultivariateNormal(mean, covariance).log_prob(torch.where(observed, y, mean))
        return log_prob + 0.5 * math.log(2 * math.pi) * (~observed).sum(-1)

    def sample(self) -> Tensor:
        """``num_samples`` targets for each input, ``[K, N, …]``."""
        joint = torch.distributions.MultivariateNormal(self.mean.flatten(1), self.covariance)
        return joint.sample((self.num_samples,)).reshape(-1, *self.mean.shape)

    def rescaled(self, loc: Tensor, scale: Tensor) -> GaussianPrediction:
        """The prediction of ``loc + scale · y``, its covariance among it."""
        factors = scale.expand(self.mean.shape[1:]).flatten()
        covariance = factors.unsqueeze(-1) * self.covariance * factors
        moments = super().rescaled(loc, scale)
        assert isinstance(moments, GaussianPrediction)
        return replace(moments, covariance=covariance)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central predictive interval of each target."""
        check_level(level)
        reach = math.sqrt(2.0) * torch.erfinv(self.std.new_tensor(level)) * self.std
        return self.mean - reach, self.mean + reach
