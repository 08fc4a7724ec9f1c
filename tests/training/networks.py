"""Small models and loaders that the tests of training share."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.guides.base import Guide
from pyrobnn.model.supervised import SupervisedModel

NUM_DATA = 20


def data() -> tuple[Tensor, Tensor]:
    """20 rows of three inputs, in three classes."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(NUM_DATA, 3, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def model(*, batch_norm: bool = False, num_data: int = NUM_DATA) -> SupervisedModel:
    """A classifier, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        middle: list[nn.Module] = [nn.BatchNorm1d(4)] if batch_norm else []
        net = nn.Sequential(nn.Linear(3, 4), *middle, nn.Tanh(), nn.Linear(4, 3))
    return SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=num_data)


def model_and_guide(**options: Any) -> tuple[SupervisedModel, Guide]:
    """The classifier and its mean-field guide."""
    built = model(**options)
    return built, MeanField(built)


def loader(**options: Any) -> DataLoader:
    """Batches of 8, 8 and 4, in order unless told otherwise."""
    return DataLoader(TensorDataset(*data()), **({"batch_size": 8} | options))


def tensors(*modules: nn.Module) -> list[Tensor]:
    """Copies of all parameters and buffers."""
    return [value.detach().clone() for module in modules for value in module.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal to the last bit."""
    return len(a) == len(b) and all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
