r"""Entropic optimal transport between two batches, by Sinkhorn's iterations.

.. math::  T = \arg\min_{T \ge 0} \sum_{ij} T_{ij} C_{ij} + \gamma \sum_{ij} T_{ij} (\log T_{ij} - 1)

with uniform marginals. The iterations are on logarithms, so that a small γ does not underflow. Cuturi, *Sinkhorn
Distances: Lightspeed Computation of Optimal Transport* (2013).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["cosine_costs", "transport_plan"]


@torch.no_grad()
def transport_plan(costs: Tensor, regularization: float = 0.01, iterations: int = 100) -> Tensor:
    """The plan ``[m, n]``, whose rows sum to 1/m (up to what the iterations leave) and columns to 1/n; no gradients.

    Args:
        costs: Costs of moving one item to another ``[m, n]``.
        regularization: Weight γ of the entropy, in units of the costs.
        iterations: Number of updates of both potentials.
    """
    scaled = -costs / regularization
    rows, columns = (-math.log(size) for size in scaled.shape)
    u, v = scaled.new_zeros(scaled.shape[0]), scaled.new_zeros(scaled.shape[1])
    for _ in range(iterations):
        u = rows - torch.logsumexp(scaled + v, 1)
        v = columns - torch.logsumexp(scaled + u.unsqueeze(1), 0)
    return (scaled + u.unsqueeze(1) + v).exp()


def cosine_costs(first: Tensor, second: Tensor) -> Tensor:
    """One minus the cosines between the rows of two batches ``[m, d]`` and ``[n, d]``."""
    return 1.0 - torch.nn.functional.normalize(first, dim=1) @ torch.nn.functional.normalize(second, dim=1).T
