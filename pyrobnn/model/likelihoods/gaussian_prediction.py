"""A predictive that is Gaussian, which has closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.metrics.crps import gaussian_distance
from pyrobnn.model.likelihoods.entropies import EntropySplit, JointEntropySplit
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction, check_level

__all__ = ["GaussianPrediction"]


@dataclass
class GaussianPrediction(MomentPrediction):
    """A Gaussian predictive: :meth:`log_prob`, quantiles and entropies have closed forms, and need no draws.

    Attributes:
        covariance: Of the targets of one input, ``[N, D, D]`` for ``D`` targets in the order of the flattened mean.
    """

    covariance: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    @property
    def _flat_mean(self) -> Tensor:
        """Targets of an input as a vector, one number if they have no dimensions, ``[N, D]``."""
        return self.mean.reshape(len(self.mean), -1)

    def log_prob(self, y: Tensor) -> Tensor:
        """Joint log density of each input's targets ``[N]``, in nats; of those that are not missing."""
        self._check(y, self.mean.shape)
        y, covariance, mean = y.to(self.mean).reshape(len(y), -1), self.covariance, self._flat_mean
        observed = self.likelihood.observed_mask(y)
        if observed is None:
            return torch.distributions.MultivariateNormal(mean, covariance).log_prob(y)
        # Missing targets become independent standard ones at their mean, whose log density is then taken out.
        both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
        covariance = torch.where(both, covariance, torch.eye(y.shape[1]).to(covariance))
        log_prob = torch.distributions.MultivariateNormal(mean, covariance).log_prob(torch.where(observed, y, mean))
        return log_prob + 0.5 * math.log(2 * math.pi) * (~observed).sum(-1)

    def sample(self, num_samples: int | None = None) -> Tensor:
        """``n`` targets of each input ``[n, N, …]``, by default as many as ``num_samples`` of the prediction.

        Raises:
            ValueError: If ``num_samples`` is no positive int.
        """
        count = self.num_samples if num_samples is None else num_samples
        check_positive_int("num_samples", count)
        joint = torch.distributions.MultivariateNormal(self._flat_mean, self.covariance)
        return joint.sample((count,)).reshape(-1, *self.mean.shape)

    def cdf(self, y: Tensor) -> Tensor:
        """Probability of at most ``y [N, …]`` or ``[Q, N, …]``, of each target alone."""
        return torch.special.ndtr((self._points(y).double() - self.mean) / self.std).to(self.mean.dtype)

    def quantile_at(self, levels: Tensor) -> Tensor:
        """Quantiles at levels ``[Q, N, …]`` of each target, of their shape."""
        return (self.mean + torch.special.ndtri(levels) * self.std).to(self.mean.dtype)

    def traced_quantile(self, levels: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Quantiles ``[Q, N, …]`` in closed form."""
        return torch.stack([self.mean + NormalDist().inv_cdf(level) * self.std for level in levels])

    def pit(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of at most ``y [N, …]``, twice."""
        self._check(y, self.mean.shape)
        at = self.cdf(y)
        return at, at

    def _crps(self, y: Tensor) -> Tensor:
        std = self.std.double()
        return gaussian_distance(y - self.mean, std) - std / math.sqrt(math.pi)

    def entropy_split(self) -> EntropySplit:
        """Entropies of Gaussians of variance ``total`` and ``aleatoric``, and their difference, in nats."""
        constant = 0.5 * math.log(2 * math.pi * math.e)
        total, aleatoric = 0.5 * self.total.log() + constant, 0.5 * self.aleatoric.log() + constant
        return EntropySplit(total, aleatoric, (total - aleatoric).clamp_min(0.0))

    def joint_entropy_split(self, num_samples: int = 1000) -> JointEntropySplit:
        """That of all targets together, in closed form: errors are 0 and ``num_samples`` has no effect.

        Raises:
            ValueError: If ``num_samples`` is no positive int.
        """
        check_positive_int("num_samples", num_samples)
        constant = 0.5 * math.log(2 * math.pi * math.e)
        total = 0.5 * torch.linalg.slogdet(self.covariance).logabsdet + constant * self.covariance.shape[-1]
        aleatoric = (0.5 * self.aleatoric.reshape(len(total), -1).log() + constant).sum(-1)
        none = torch.zeros_like(total)
        return JointEntropySplit(total, aleatoric, total - aleatoric, none, none, none)

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
        low, high = self.quantile(((1 - level) / 2, (1 + level) / 2))
        return low, high
