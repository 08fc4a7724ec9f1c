"""Models with known answers, shared by the tests beside this file."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.model.supervised import SupervisedModel

NOISE = 0.5


class Conjugate:
    """Bayesian linear regression whose inputs are orthogonal, so that the exact posterior is diagonal.

    With noise sd s and a N(0, 1) prior, the posterior of weight j is Normal with precision
    ``1 + |x_j|^2 / s^2`` and mean ``x_j . y / s^2`` over that precision.
    """

    def __init__(self, num_data: int = 100, dims: int = 3, *, noise: float = NOISE, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        raw = torch.randn(num_data, dims, generator=generator, dtype=torch.float64)
        self.x = torch.linalg.qr(raw)[0] * math.sqrt(num_data)
        truth = torch.linspace(-1.0, 1.5, dims, dtype=torch.float64)
        self.y = self.x @ truth + NOISE * torch.randn(num_data, generator=generator, dtype=torch.float64)
        self.y = self.y[:, None]
        net = nn.Linear(dims, 1, bias=False, dtype=torch.float64)
        prior = dist.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
        self.model = SupervisedModel(net, likelihoods.Normal(noise), prior, num_data=num_data).double()
        self.precision = 1.0 + self.x.square().sum(0) / noise**2
        self.mean = (self.x * self.y).sum(0) / noise**2 / self.precision

    def guide(self, width: float = 1.0) -> MeanField:
        """The exact posterior, its standard deviations times ``width``."""
        return set_parameters(MeanField(self.model), self.mean, width * self.precision.rsqrt())

    def loader(self, batch_size: int = 32, shuffle: bool = False) -> torch.utils.data.DataLoader:
        data = torch.utils.data.TensorDataset(self.x, self.y)
        generator = torch.Generator().manual_seed(1)
        return torch.utils.data.DataLoader(data, batch_size, shuffle=shuffle, generator=generator)


def set_parameters(guide: MeanField, loc: Tensor, scale: Tensor) -> MeanField:
    with torch.no_grad():
        guide.flat_loc.copy_(loc)
        guide.flat_log_scale.copy_(scale.log())
    return guide


def small_network(num_data: int = 20, hidden: int = 4) -> tuple[SupervisedModel, Tensor, Tensor]:
    """A regression network with one hidden layer, and data."""
    x = torch.linspace(-1, 1, num_data)[:, None].repeat(1, 2) * torch.tensor([1.0, -0.5])
    y = torch.sin(3 * x[:, :1])
    net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    model = SupervisedModel(net, likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=num_data)
    return model, x, y
