r"""A U-Net whose cells have a random structure, for images with a class in each pixel.

.. math::  p(\alpha)\, p(w) \prod_{i=1}^N \prod_{p:\, y_{ip} \ne \text{void}} p(y_{ip} \mid f_{w, \alpha}(x_i)_p).

Below the images' own resolution each level of the U-Net is a cell, a graph of a few nodes whose edges mix operations
(zero, identity, a separable convolution and a dilated one) by the weights α; all cells share them, as in a deep
Bayesian structure network (Deng, Luo, Zhu & Zhang, *Measuring Uncertainty through Bayesian Learning of Deep Neural
Network Structure*, 2019, whose segmentation network is a DenseNet). Images are the data plate, of size N; an image's
pixels are dimensions of one event, which void masks and nothing scales: a batch of B images counts N / B times, however
many pixels it has.

Each operation ends in batch normalization without a scale, which would undo α. Running statistics are averages over
structures; re-estimate them by :func:`pyrobnn.recalibrate_batch_norm` after training. Mean intersection over union:
``torchmetrics.classification.MulticlassJaccardIndex(classes, ignore_index=void)``.
"""

from __future__ import annotations

import functools
import itertools

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.structure import Choice, Edges, Zero

__all__ = ["StructuredUNet", "segmentation"]

OPERATIONS = ("zero", "identity", "separable", "dilated")


def segmentation(
    num_data: int,
    *,
    classes: int = 11,
    void: int | None = 11,
    channels: int = 3,
    width: int = 16,
    levels: int = 3,
    nodes: int = 3,
    temperature: float = 1.0,
    prior: pb.priors.PriorSpec | None = None,
) -> pb.SupervisedModel:
    """The model; pair it with a concrete distribution over the structure and a point for the weights::

        rules = [("*structure*", pb.guides.ConcreteStructure), ("*", pb.guides.MAP)]
        guide = pb.guides.Composite(model, rules)

    Args:
        num_data: Number of training images.
        classes: Number of classes.
        void: The label of pixels without a class, or None; they count nowhere.
        channels: Channels of the images ``[B, channels, H, W]``; labels are ``[B, H, W]``.
        width: Channels at full resolution; they double with each level, up to eightfold.
        levels: Levels with cells, each of half the resolution of the one before.
        nodes: Nodes of a cell, of which the first is its input.
        temperature: Temperature of the relaxed prior of α.
        prior: Prior of the weights; a normal distribution of standard deviation 1 if None.
    """
    net = StructuredUNet(channels, classes, width=width, levels=levels, nodes=nodes, temperature=temperature)
    likelihood = pb.likelihoods.Categorical(class_dim=1, ignore_index=void)
    return pb.SupervisedModel(net, likelihood, dist.Normal(0.0, 1.0) if prior is None else prior, num_data=num_data)


class StructuredUNet(nn.Module):
    """Cells on the way down and on the way up, with one site of structure for all of them.

    At full resolution there are two ordinary convolutions: a cell would cost more there than all others together.

    Args:
        channels: Channels of the images.
        classes: Number of classes.
        width: Channels of the first level.
        levels: Levels with cells.
        nodes: Nodes of a cell.
        temperature: Temperature of the structure's prior.

    Attributes:
        edges: The site: one row for each pair of nodes, one column for each operation.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        width: int = 16,
        levels: int = 3,
        nodes: int = 3,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.edges = Edges(_pairs(nodes), OPERATIONS, temperature=temperature)
        widths = [width * min(2**level, 8) for level in range(levels + 1)]
        steps = list(itertools.pairwise(widths))
        self.stem = _convolution(channels, width)
        self.down = nn.ModuleList(Cell(self.edges, above, below, nodes) for above, below in steps)
        self.up = nn.ModuleList(Cell(self.edges, below + skip, skip, nodes) for skip, below in steps[:0:-1])
        self.merge = _convolution(widths[1] + width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes, H, W]`` of images ``[B, channels, H, W]``."""
        passed = [self.stem(x)]
        for cell in self.down:
            passed.append(cell(F.max_pool2d(passed[-1], 2, ceil_mode=True)))
        x = passed.pop()
        for layer in [*self.up, self.merge]:
            skip = passed.pop()
            x = layer(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        return self.head(x)


class Cell(nn.Module):
    """A graph of nodes: each is the sum of all earlier ones through the choice on the edge between them.

    Args:
        edges: The site of all edges' choices.
        inputs: Channels of the input.
        width: Channels of nodes and output.
        nodes: Number of nodes.
    """

    def __init__(self, edges: Edges, inputs: int, width: int, nodes: int) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width, affine=False))
        self.nodes = nodes
        choices = {_name(*pair): Choice(_operations(width), edges=edges, edge=pair) for pair in _pairs(nodes)}
        self.choices = nn.ModuleDict(choices)
        self.exit = nn.BatchNorm2d(width, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width, H, W]`` from ``[B, inputs, H, W]``."""
        states = [self.entry(x)]
        for target in range(1, self.nodes):
            arriving = [self.choices[_name(source, target)](state) for source, state in enumerate(states)]
            states.append(functools.reduce(torch.add, arriving))
        return F.relu(self.exit(states[0] + states[-1]))


def _pairs(nodes: int) -> list[tuple[int, int]]:
    """All edges, from earlier nodes to later ones."""
    return [(source, target) for target in range(1, nodes) for source in range(target)]


def _name(source: int, target: int) -> str:
    return f"{source}_{target}"


def _operations(width: int) -> dict[str, nn.Module]:
    return {
        "zero": Zero(),
        "identity": nn.Identity(),
        "separable": _separable(width, 1),
        "dilated": _separable(width, 2),
    }


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs, affine=False), nn.ReLU()
    )


def _separable(width: int, dilation: int) -> nn.Module:
    """A convolution of each channel alone, then one across channels."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width, affine=False),
    )
