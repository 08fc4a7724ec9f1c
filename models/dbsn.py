r"""Deep Bayesian structure networks: a posterior over the wiring of a cell, and the baselines it is compared with.

A *cell* is a complete directed acyclic graph. Its input, through a 1×1 convolution, gives the nodes their first
features :math:`f_j`, ``growth`` channels each, and

.. math::  N_j = f_j + \sum_{i < j} \sum_k \alpha^{(ij)}_k\, o^{(ij)}_k(N_i), \qquad
           o \in \{\text{zero, identity, separable, dilated separable convolution}\};

the cell returns its input beside all its nodes. Cells stand in stages, between which a 1×1 convolution keeps a fraction
``reduction`` of the channels and pooling halves the image. All cells have weights of their own but share one
:math:`\alpha`: one site ``net.edges.structure`` of shape ``[E, 4]``. Batch normalization follows each operation, with
α for its scale, so that no weight can undo α. The paper's network has 7 nodes, hence 21 edges, and 3 stages of 4
cells; its weights are points, and its posterior over α is concrete.

Deng, Luo, Zhu & Zhang, *Measuring Uncertainty through Bayesian Learning of Deep Neural Network Structure* (2019).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

import pyrobnn as pb
from models.cells import OPERATIONS, CellNetwork
from pyrobnn import guides, schedules
from pyrobnn.core.arguments import check_positive_int

__all__ = [
    "METHODS",
    "SMALL",
    "Method",
    "adam",
    "annealing",
    "dbsn",
    "deep_bayesian_structure",
    "dropout",
    "learned_structure",
    "mean_field",
    "random_structure",
]

SMALL: dict[str, Any] = {
    "in_channels": 1,
    "nodes": 4,
    "cells": 1,
    "stages": 2,
    "growth": 8,
    "stem_stride": 2,
    "operations": OPERATIONS[:3],
}
"""Options of :func:`dbsn` for images of 14×14 or 28×28 pixels on a CPU: 6 edges in each of two cells."""

_STRUCTURE = "*structure*"


def dbsn(
    num_data: int,
    *,
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
    weight_decay: float = 1e-4,
    is_random: bool = True,
) -> pb.SupervisedModel:
    """The model, by default in the paper's size (:data:`SMALL` has another); pair it with one of the guides below.

    Args:
        num_data: Number of training data.
        in_channels: Channels of the images.
        classes: Number of classes.
        nodes: Nodes of a cell, n; it has n(n - 1)/2 edges.
        cells: Cells in each stage.
        stages: Number of stages.
        growth: Channels of a node.
        reduction: Fraction of the channels that is kept between stages.
        stem_stride: Step of the first convolution; 2 halves the images at once.
        operations: What there is to choose from on an edge, of :data:`OPERATIONS`.
        temperature: Temperature of the prior of the structure, which is uniform over the operations.
        weight_decay: Weight decay λ on the mean loss, for which the weights' prior of variance 1 / (λN) stands.
        is_random: Whether the structure is a site; otherwise all operations weigh the same, for good.

    Raises:
        ValueError: If a size is no positive int, ``reduction`` or ``weight_decay`` is out of range, or an operation
            unknown.
    """
    if not weight_decay > 0:
        raise ValueError(f"weight_decay: expected a positive number, got {weight_decay!r}.")
    net = CellNetwork(
        in_channels, classes, nodes, cells, stages, growth, reduction, stem_stride, operations, temperature
    )
    weights = dist.Normal(0.0, (weight_decay * num_data) ** -0.5)
    prior: Any = weights if is_random else [(_STRUCTURE, None), ("*", weights)]
    return pb.SupervisedModel(net, pb.likelihoods.Categorical(), prior, num_data=num_data)


# -------------------------------------------------------------------------------------------------------- posteriors


def deep_bayesian_structure(
    model: pb.SupervisedModel,
    *,
    temperature: schedules.Schedule = 1.0,
    beta: schedules.Schedule = 1.0,
    weights: Callable[..., guides.Guide] = guides.MAP,
    **options: Any,
) -> guides.Composite:
    """A concrete posterior over the structure, one point (or another family) for the weights.

    :func:`annealing` makes the paper's schedules: ``deep_bayesian_structure(model, **annealing(num_steps))``.

    Args:
        model: The model.
        temperature: Temperature of the draws, and of the prior they are compared with.
        beta: Scale of the noise; below 1 the posterior is sharper than without ("cold").
        weights: Family of the weights.
        **options: Further options of :class:`~pyrobnn.guides.ConcreteStructure`.
    """
    options = {"temperature": temperature, "beta": beta, "anneal_prior": True} | options
    structure = functools.partial(guides.ConcreteStructure, **options)
    return guides.Composite(model, [(_STRUCTURE, structure), ("*", weights)])


def annealing(num_steps: int) -> dict[str, schedules.Schedule]:
    """The paper's schedules, for a training of so many steps (the paper's own has 78,000).

    The temperature falls exponentially from 3 to 1, where it is after 94 % of the steps; the scale of the noise
    falls from 1 to 0.5 within the first half.

    Args:
        num_steps: Number of steps.

    Raises:
        ValueError: If it is no positive int.
    """
    check_positive_int("num_steps", num_steps)
    return {
        "temperature": schedules.Exponential(3.0, math.log(3.0) / (0.94 * num_steps), floor=1.0),
        "beta": schedules.Linear(1.0, 0.5, num_steps // 2 + 1, hold=True),
    }


def learned_structure(model: pb.SupervisedModel) -> guides.Composite:
    """MAP: one point for the structure, another for the weights."""
    return guides.Composite(model, [(_STRUCTURE, guides.MAP), ("*", guides.MAP)])


def random_structure(model: pb.SupervisedModel) -> guides.Composite:
    """The structure as random as its prior, in training and prediction; one point for the weights."""
    prior = functools.partial(guides.ConcreteStructure, init_scale=0.0, learned=False)
    return guides.Composite(model, [(_STRUCTURE, prior), ("*", guides.MAP)])


def dropout(model: pb.SupervisedModel, p: float = 0.1) -> guides.MCDropout:
    """MC dropout at the inputs of cells, before the convolutions between stages and before the last layer.

    Each image has masks of its own, as ``nn.Dropout`` gives it.

    Args:
        model: The model, with a fixed structure.
        p: Probability of dropping a channel.
    """
    named = model.net.network.named_parameters()
    matrices = [name for name, value in named if value.dim() > 1 and name != "edges.structure"]
    outside = [name for name in matrices if ".choices." not in name and not name.startswith("stem")]
    return guides.MCDropout(model, p=p, where=outside, per_example=True)


def mean_field(model: pb.SupervisedModel, init_scale: float = 1e-2) -> guides.MeanField:
    """Bayes by backprop: a Gaussian for each weight, for a fixed structure."""
    return guides.MeanField(model, init_scale=init_scale)


@dataclass(frozen=True)
class Method:
    """A posterior of the comparison.

    Attributes:
        guide: Makes it from a model.
        is_random: What :func:`dbsn` is told of the structure.
    """

    guide: Callable[[pb.SupervisedModel], guides.Guide]
    is_random: bool = True


METHODS: dict[str, Method] = {
    "DBSN": Method(deep_bayesian_structure),
    "MAP": Method(learned_structure),
    "MAP, fixed structure": Method(guides.MAP, is_random=False),
    "random structure": Method(random_structure),
    "MC dropout": Method(dropout, is_random=False),
    "mean field": Method(mean_field, is_random=False),
}
"""The paper's comparison; the names are those of its table."""


def adam(
    model: nn.Module, guide: guides.Guide, lr: float = 1e-2, structure_lr: float = 1e-2, **options: Any
) -> torch.optim.Adam:
    """An optimizer with a learning rate of its own for the structure, for ``pb.fit(..., optimizer=...)``.

    Args:
        model: The model.
        guide: The guide.
        lr: Learning rate of the weights.
        structure_lr: Learning rate of the structure's parameters; a smaller one than the weights' keeps its posterior
            from narrowing to a point before they are trained.
        **options: Further options of :class:`torch.optim.Adam`.
    """
    parts = dict.fromkeys(guide.part(name) for name in guide.layout)
    structural = [part for part in parts if all(name.endswith("structure") for name in part.layout)]
    own = [p for part in structural for p in part.parameters() if p.requires_grad]
    taken = {id(p) for p in own}
    others = [p for module in (guide, model) for p in module.parameters() if p.requires_grad and id(p) not in taken]
    groups: list[dict[str, Any]] = [{"params": others, "lr": lr}]
    if own:
        groups.append({"params": own, "lr": structure_lr})
    return torch.optim.Adam(groups, **options)
