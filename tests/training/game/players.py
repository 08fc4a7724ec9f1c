"""Two players of one number each, whose games have closed forms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.training import GamePlayer


def number(start: float) -> nn.Module:
    """A module of one trainable number."""
    return nn.ParameterList([nn.Parameter(torch.tensor(start, dtype=torch.float64))])


def value(module: nn.Module) -> Tensor:
    """The number of a module."""
    return next(module.parameters())


def descent(name: str, start: float, lr: float = 0.1, **options: Any) -> GamePlayer:
    """A player that descends along its gradient."""
    return GamePlayer(name, number(start), torch.optim.SGD, lr, **options)
