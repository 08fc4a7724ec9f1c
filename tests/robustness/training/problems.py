"""Small problems that tests of training against attacks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, DeltaMixture, Guide, LowRankNormal, MeanField

FAMILIES: dict[str, Callable[[Any], Guide]] = {
    "MAP": MAP,
    "MeanField": MeanField,
    "LowRankNormal": lambda model: LowRankNormal(model, 2),
    "DeltaMixture": lambda model: DeltaMixture(model, 3),
}
Problem = tuple[pb.SupervisedModel, Guide, tuple[Tensor, Tensor]]


def problem(family: str = "MAP", *, batch_norm: bool = True) -> Problem:
    """Three classes in three dimensions, 12 data in double precision."""
    torch.manual_seed(1)
    middle: list[nn.Module] = [nn.BatchNorm1d(5)] if batch_norm else []
    net = nn.Sequential(nn.Linear(3, 5), *middle, nn.Tanh(), nn.Linear(5, 3))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=12).double()
    x = torch.rand(12, 3, dtype=torch.float64)
    return model, FAMILIES[family](model).double(), (x, torch.arange(12) % 3)


def linear_problem() -> Problem:
    """Logistic regression of two classes, for which the worst input in a ball is known."""
    torch.manual_seed(2)
    model = pb.SupervisedModel(nn.Linear(4, 2), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=10)
    return model.double(), MAP(model).double(), (torch.rand(10, 4, dtype=torch.float64), torch.arange(10) % 2)


def fitted(family: str, elbo: Any, epochs: int = 2, **options: Any) -> tuple[Guide, pb.training.History]:
    """After a few steps of the problem of a family, and the history."""
    model, guide, (x, y) = problem(family)
    loader = [(x[:6], y[:6]), (x[6:], y[6:])]
    return guide, pb.fit(model, guide, loader, elbo=elbo, epochs=epochs, lr=0.01, seed=0, progress=False, **options)
