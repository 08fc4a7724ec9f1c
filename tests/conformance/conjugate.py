r"""Bayesian linear regression with known noise: everything in closed form.

With features :math:`\Phi = [X, 1]`, noise :math:`\sigma` and prior :math:`N(0, s^2)` the posterior is
:math:`N(m, \Lambda^{-1})` with :math:`\Lambda = \Phi^\top\Phi/\sigma^2 + I/s^2` and
:math:`m = \Lambda^{-1}\Phi^\top y/\sigma^2`. The best factorized Gaussian has the same means and the
variances :math:`1/\Lambda_{ii}`; its ELBO misses the log evidence by
:math:`\tfrac12(\sum_i\log\Lambda_{ii} - \log\det\Lambda)` (Bishop 2006, section 10.1.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.guides import MeanField
from pyrobnn.model.likelihoods import Normal
from pyrobnn.model.supervised import SupervisedModel


@dataclass
class ConjugateRegression:
    """Data ``x [N, d]``, ``y [N, 1]`` of correlated inputs; ``d + 1`` weights, the bias last; double precision.

    Attributes:
        temperature: Weight λ of the KL, for the tempered optimum.
    """

    num_data: int = 40
    dim: int = 3
    noise: float = 0.7
    prior_scale: float = 1.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.num_data, self.dim, generator=generator, dtype=torch.float64)
        x[:, 1:] += 0.8 * x[:, :1]  # correlated inputs: the factorized posterior is not exact
        weights = torch.linspace(-1.5, 2.0, self.dim, dtype=torch.float64)
        noise = self.noise * torch.randn(self.num_data, generator=generator, dtype=torch.float64)
        self.x, self.y = x, (x @ weights + 0.8 + noise).unsqueeze(-1)

    @property
    def features(self) -> Tensor:
        """``[N, d + 1]``, ones last."""
        return torch.cat([self.x, torch.ones(self.num_data, 1, dtype=torch.float64)], 1)

    @property
    def precision(self) -> Tensor:
        """Λ of the (tempered) posterior."""
        prior = torch.eye(self.dim + 1, dtype=torch.float64) / self.prior_scale**2
        return self.features.T @ self.features / (self.noise**2 * self.temperature) + prior

    @property
    def mean(self) -> Tensor:
        """Mean of the (tempered) posterior."""
        pull = self.features.T @ self.y.squeeze(-1) / (self.noise**2 * self.temperature)
        return torch.linalg.solve(self.precision, pull)

    @property
    def mean_field_variance(self) -> Tensor:
        """Variances of the best factorized Gaussian."""
        return 1.0 / self.precision.diagonal()

    @property
    def log_evidence(self) -> float:
        """log p(y | x), untempered."""
        covariance = self.prior_scale**2 * self.features @ self.features.T
        covariance += self.noise**2 * torch.eye(self.num_data, dtype=torch.float64)
        zeros = torch.zeros(self.num_data, dtype=torch.float64)
        return float(dist.MultivariateNormal(zeros, covariance).log_prob(self.y.squeeze(-1)))

    @property
    def gap(self) -> float:
        """KL from the best factorized Gaussian to the posterior."""
        return float(0.5 * (self.precision.diagonal().log().sum() - torch.logdet(self.precision)))

    def model(self) -> SupervisedModel:
        """The model of these data, in double precision."""
        prior = dist.Normal(0.0, self.prior_scale)
        return SupervisedModel(nn.Linear(self.dim, 1), Normal(self.noise), prior, num_data=self.num_data).double()

    def optimal_guide(self, model: SupervisedModel, **options: bool) -> MeanField:
        """The mean-field guide set to the closed-form optimum."""
        guide = MeanField(model, **options).double()
        with torch.no_grad():
            guide.flat_loc.copy_(self.mean)
            guide.flat_log_scale.copy_(0.5 * self.mean_field_variance.log())
        return guide
