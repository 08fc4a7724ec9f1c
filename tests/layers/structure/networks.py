"""Small networks with structure in them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.structure import Choice, Depth, Edges, Gate, Zero

PAIRS = [(0, 1), (0, 2), (1, 2)]
OPERATIONS = ("zero", "identity", "conv")


class Cell(nn.Module):
    """Three nodes, three edges."""

    def __init__(self, edges: Edges, channels: int, batch_norm: int | None = None) -> None:
        super().__init__()
        self.choices = nn.ModuleList(
            Choice(
                {"zero": Zero(), "identity": nn.Identity(), "conv": nn.Conv2d(channels, channels, 3, padding=1)},
                edges=edges,
                edge=pair,
                batch_norm=batch_norm,
            )
            for pair in PAIRS
        )

    def forward(self, x: Tensor) -> Tensor:
        middle = self.choices[0](x)
        return self.choices[1](x) + self.choices[2](middle)


class CellNetwork(nn.Module):
    """Two cells that share one site, one with normalized operations, a gate for each channel, a choice of depth."""

    def __init__(self, channels: int = 4, temperature: float = 1.0) -> None:
        super().__init__()
        self.edges = Edges(PAIRS, OPERATIONS, temperature=temperature)
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.first, self.second = Cell(self.edges, channels), Cell(self.edges, channels, channels)
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gate = Gate(channels, temperature=temperature)
        self.block = Gate(1, nn.Conv2d(channels, channels, 1), temperature=temperature)
        self.depth = Depth([nn.Conv2d(channels, channels, 1) for _ in range(3)], min_depth=0, temperature=temperature)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.norm(self.second(self.first(self.stem(x)))))
        x = self.depth(x + self.block(x)).tanh()
        return self.head(x.mean((2, 3)))


SITES = [
    "net.edges.structure",
    "net.gate.gates.structure",
    "net.block.gates.structure",
    "net.depth.depths.structure",
]


def cell_model(prior: Any = None, **options: Any) -> SupervisedModel:
    """A model of images in three classes."""
    prior = dist.Normal(0.0, 1.0) if prior is None else prior
    return SupervisedModel(CellNetwork(**options), likelihoods.Categorical(), prior, num_data=24)


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    return torch.randn(count, 1, 5, 5), torch.randint(3, (count,))


class Scaled(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Mixed(nn.Module):
    """Choices, gates and a depth without any weights: all sites are structure."""

    def __init__(self, logits: Tensor | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        self.choice = Choice([Scaled(1.0), Scaled(-0.5), Scaled(2.0)], logits=logits, temperature=temperature)
        self.gate = Gate(3, temperature=temperature)
        self.depth = Depth([Scaled(0.5), Scaled(-1.0)], temperature=temperature)

    def forward(self, x: Tensor) -> Tensor:
        return self.depth(self.gate(self.choice(x))).sum(-1, keepdim=True)


def mixed_model(logits: Tensor | None = None, temperature: float = 1.0) -> SupervisedModel:
    """Regression by :class:`Mixed`."""
    net = Mixed(logits, temperature)
    return SupervisedModel(net, likelihoods.Normal(0.7), dist.Normal(0.0, 1.0), num_data=24)
