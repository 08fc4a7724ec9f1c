"""A small classifier with features, and draws of it."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import guides
from pyrobnn.detection import NetworkOutputs

CLASSES, FEATURES, DRAWS = 3, 6, 4


def data(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs of three clusters in the plane, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    centers = torch.tensor([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    return centers[y] + 0.5 * torch.randn(count, 2, generator=generator), y


def posterior(count: int = 60) -> tuple[pb.SupervisedModel, guides.MeanField]:
    """A model and a wide posterior."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, FEATURES), nn.Tanh(), nn.Linear(FEATURES, CLASSES))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=count)
    guide = guides.MeanField(model)
    with torch.no_grad():
        for value in guide.parameters():
            value += 0.3 * torch.randn_like(value)
    return model, guide


def made_up(rows: int = 50, draws: int = DRAWS, features: int = FEATURES, seed: int = 0) -> NetworkOutputs:
    """Outputs that are a matrix times features, in clusters, in double precision."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.arange(rows) % CLASSES
    fixed = torch.Generator().manual_seed(99)
    centers = 2.0 * torch.randn(draws, CLASSES, features, generator=fixed, dtype=torch.float64)
    weight = torch.randn(draws, CLASSES, features, generator=fixed, dtype=torch.float64)
    bias = torch.randn(draws, CLASSES, generator=fixed, dtype=torch.float64)
    phi = centers[:, targets] + normal(draws, rows, features)
    return NetworkOutputs(phi @ weight.mT + bias.unsqueeze(1), phi, weight, bias, targets)
