"""The network of cells behind :mod:`models.dbsn`: a complete graph of operations, repeated with one structure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.structure import Choice, Edges, Zero

__all__ = ["OPERATIONS", "Cell", "CellNetwork"]

OPERATIONS = ("zero", "identity", "separable", "dilated")
"""The operations on an edge: nothing, the node itself, two separable convolutions, a dilated separable one."""


class CellNetwork(nn.Module):
    """Stages of cells that share one structure; arguments as for :func:`models.dbsn.dbsn`.

    Attributes:
        edges: The structure.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        nodes: int = 7,
        cells: int = 4,
        stages: int = 3,
        growth: int = 16,
        reduction: float = 0.4,
        stem_stride: int = 1,
        operations: Sequence[str] = OPERATIONS,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = {"nodes": nodes, "cells": cells, "stages": stages, "growth": growth, "stem_stride": stem_stride}
        for name, size in sizes.items():
            check_positive_int(name, size)
        if nodes < 2:
            raise ValueError(f"nodes: expected at least 2, between which there is an edge, got {nodes}.")
        if not 0 < reduction <= 1:
            raise ValueError(f"reduction: expected a fraction of the channels, from 0 to 1, got {reduction!r}.")
        if unknown := sorted(set(operations) - set(OPERATIONS)):
            raise ValueError(f"operations: there is no {unknown[0]!r}; there are {', '.join(OPERATIONS)}.")
        pairs = list(itertools.combinations(range(nodes), 2))
        self.edges = Edges(pairs, operations, temperature=temperature)
        channels = 2 * growth
        self.stem = nn.Conv2d(in_channels, channels, 3, stride=stem_stride, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for stage in range(stages):
            if stage:
                kept = max(1, int(reduction * channels))
                blocks.append(nn.Sequential(*_activated_conv(channels, kept, 1), nn.AvgPool2d(2)))
                channels = kept
            for _ in range(cells):
                blocks.append(Cell(channels, growth, self.edges, nodes))
                channels += nodes * growth
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, C, H, W]``."""
        features = self.norm(self.blocks(self.stem(x))).relu()
        return self.head(features.mean((2, 3)))


class Cell(nn.Module):
    """One cell, ``[B, C, H, W]`` to ``[B, C + nodes * growth, H, W]``.

    Args:
        in_channels: Channels C of the input.
        growth: Channels of a node.
        edges: The structure: operations for all pairs of nodes (source, target) with source < target.
        nodes: Number of nodes.
    """

    def __init__(self, in_channels: int, growth: int, edges: Edges, nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        conv = _activated_conv(in_channels, nodes * growth, 1)
        self.preprocess = nn.Sequential(*conv, nn.BatchNorm2d(nodes * growth, affine=False))
        self.choices = nn.ModuleDict(
            {
                f"{source}-{target}": Choice(
                    {name: _operation(name, growth) for name in edges.operations},
                    edges=edges,
                    edge=(source, target),
                    batch_norm=growth,
                )
                for source, target in itertools.combinations(range(nodes), 2)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input and all nodes, side by side."""
        nodes = list(self.preprocess(x).chunk(self.nodes, 1))
        for target in range(1, self.nodes):
            for source in range(target):
                nodes[target] = nodes[target] + self.choices[f"{source}-{target}"](nodes[source])
        return torch.cat([x, *nodes], 1)


def _operation(name: str, channels: int) -> nn.Module:
    if name in ("zero", "identity"):
        return Zero() if name == "zero" else nn.Identity()
    dilations = {"separable": (1, 1), "dilated": (2,)}[name]
    return nn.Sequential(*itertools.chain.from_iterable(_separable(channels, dilation) for dilation in dilations))


def _separable(channels: int, dilation: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
    return [nn.BatchNorm2d(channels), nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False)]


def _activated_conv(in_channels: int, out_channels: int, size: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False)
    return [nn.BatchNorm2d(in_channels), nn.ReLU(), conv]
