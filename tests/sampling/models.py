"""Models, data and a quick run for the tests of sampling."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods
from pyrobnn.guides import Chains
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling import (
    SGLD,
    sample,
)


def classifier(net: nn.Module | None = None, num_data: int = 24) -> SupervisedModel:
    """A small classifier of three inputs and three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = net or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=num_data)


def rows(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, generator=generator), torch.randint(3, (count,), generator=generator)


def loader(shuffle: bool = True, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(*rows()), batch_size=8, shuffle=shuffle, **options)


def quick(model: Any, data: Any = None, **options: Any) -> Chains:
    """A few draws."""
    options = {"kernel": SGLD(1e-3), "num_samples": 3, "seed": 0, "progress": False} | options
    return sample(model, rows() if data is None else data, **options)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3))
