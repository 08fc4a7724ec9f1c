"""Problems with unlabeled rows, and augmentations that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP
from pyrobnn.objectives import MeanTeacher, PiModel, TemporalEnsembling

CASES: dict[str, Any] = {kind.__name__: kind for kind in (PiModel, TemporalEnsembling, MeanTeacher)}


def linear() -> tuple[pb.SupervisedModel, MAP, tuple[Tensor, Tensor]]:
    """Three inputs, three classes, N = 20, a batch of six, in double precision."""
    torch.manual_seed(1)
    model = pb.SupervisedModel(nn.Linear(3, 3), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20)
    model = model.double()
    return model, MAP(model), (torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2] * 2))


def shifts(count: int, seed: int) -> Tensor:
    """Shifts of standard deviation 0.3."""
    return 0.3 * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shifted(by: Iterable[float]) -> Callable[[Tensor], Tensor]:
    """An augmentation that adds the given numbers, one a call."""
    following = iter(by)
    return lambda x: x + next(following)


def turned(x: Tensor) -> Tensor:
    """Each row turned around the origin by an angle of its own, up to 60 degrees."""
    angle = torch.empty(len(x)).uniform_(-1.05, 1.05)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)


def two_rings() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eight labeled rows and their labels, 200 unlabeled rows and theirs: a ring of radius 1, another of 2."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(200) % 2
    angle = 2 * torch.pi * torch.rand(200, generator=generator)
    radius = 1.0 + labels + 0.1 * torch.randn(200, generator=generator)
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return x[:8], labels[:8], x, labels
