r"""The generalized Gauss–Newton matrix from per-example Jacobians, :math:`H = \sum_n J_n^\top \Lambda_n J_n`.

``J_n [O, n]`` are the derivatives of a datum's ``O`` outputs by the chosen weights
(:mod:`pyrobnn.curvature.jacobians`), in chunks of data that fit a byte budget. Where the Jacobian of one datum does
not, or has more than a thousand rows, the information of the outputs is sampled. The network must be in evaluation
mode: under batch statistics examples have no Jacobian each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.curvature.dense import add_products
from pyrobnn.curvature.fisher import SAMPLED_COLUMNS, fisher_roots, information_of
from pyrobnn.curvature.jacobians import Derivatives
from pyrobnn.curvature.layout import Group
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

MOST_COLUMNS = 1000
"""Columns of a datum's information beyond which it is sampled: each takes a backward pass."""

__all__ = ["GaussNewtonSums", "gauss_newton", "outputs_and_jacobians", "weight_rows"]


def gauss_newton(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    names: Sequence[str],
    x: Any,
    *,
    diagonal: bool = False,
    max_bytes: int = 256 * 2**20,
) -> Tensor:
    """One batch's part of H, summed over its examples (not averaged, not scaled to the data set).

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites.
        names: The sites whose curvature is requested, in this order.
        x: A batch of inputs.
        diagonal: Only the diagonal.
        max_bytes: Budget for Jacobians.

    Returns:
        ``[n, n]``, or ``[n]`` if diagonal, in double precision.
    """
    derivatives = Derivatives(model, values, names, max_bytes)
    total: Tensor | float = 0.0
    for rows in weight_rows(derivatives, x, derivatives.outputs(x)):
        total = total + (rows.square().sum(0) if diagonal else rows.T @ rows)
    return torch.as_tensor(total)


def weight_rows(
    derivatives: Derivatives, x: Any, outputs: Tensor, weight: Tensor | None = None, targets: Tensor | None = None
) -> Iterator[Tensor]:
    """Rows ``[·, n]`` whose outer products add up to a batch's part of H, in double precision, chunk by chunk.

    Args:
        derivatives: Derivatives by the weights.
        x: A batch of inputs.
        outputs: Its outputs.
        weight: Weights ``[B]`` of the data's log likelihoods.
        targets: The targets, for likelihoods that mask or weight them.
    """
    likelihood = derivatives.model.likelihood
    with SubstituteMessenger(derivatives.values):
        information = information_of(likelihood, outputs, weight, targets=targets)
        is_large = information.columns > MOST_COLUMNS or not derivatives.fits(outputs)
        if is_large and information.columns > SAMPLED_COLUMNS:
            roots = fisher_roots(likelihood, outputs, weight, max_exact=SAMPLED_COLUMNS, targets=targets)
            columns = roots.movedim(0, 1)
            for _, products in derivatives.products(x, outputs, columns.reshape(*columns.shape[:2], -1)):
                yield products.flatten(0, 1).double()
            return
    index = information.index.flatten()
    is_in_order = torch.equal(index, torch.arange(len(index), device=index.device))
    for chosen, jacobians in derivatives.jacobians(x, outputs):
        by_block = (jacobians if is_in_order else jacobians[:, index]).unflatten(1, information.index.shape)
        root = information.part(chosen).root().to(jacobians.dtype)
        yield (root.mT @ by_block).flatten(0, 2).double()


class GaussNewtonSums:
    """The matrix of some groups of sites, or its diagonal, summed over batches.

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites.
        groups: The groups.
        max_bytes: Budget for Jacobians.
        dense: The matrix to add to, of which the lower triangle counts; None to sum the diagonal.
    """

    def __init__(
        self,
        model: SupervisedModel,
        values: Mapping[str, Tensor],
        groups: Sequence[Group],
        max_bytes: int,
        dense: Tensor | None,
    ) -> None:
        self.groups, self.dense = groups, dense
        names = [site.name for group in groups for site in group.sites]
        self.derivatives = Derivatives(model, values, names, max_bytes) if names else None
        self.diagonal: Tensor | float = 0.0

    def add(self, x: Any, outputs: Tensor, weight: Tensor | None, targets: Tensor | None = None) -> None:
        """Adds a batch of inputs with its outputs, weights of its data, and targets."""
        if self.derivatives is None:
            return
        for rows in weight_rows(self.derivatives, x, outputs, weight, targets):
            if self.dense is None:
                self.diagonal = self.diagonal + rows.square().sum(0)
            else:
                add_products(self.dense, rows)

    def diagonal_of(self, group: Group) -> Tensor | float:
        """The part of one group; zero if nothing was added."""
        if not isinstance(self.diagonal, Tensor):
            return self.diagonal
        start = sum(other.block.size for other in self.groups[: self.groups.index(group)])
        return self.diagonal[start : start + group.block.size]


def outputs_and_jacobians(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    names: Sequence[str],
    x: Any,
    *,
    max_bytes: int = 256 * 2**20,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs ``[b, ...]`` and their Jacobians ``[b, O, n]`` by the sites ``names``, a chunk of examples at a time.

    Arguments are those of :func:`gauss_newton`. No gradients are attached.
    """
    derivatives = Derivatives(model, values, names, max_bytes)
    outputs = derivatives.outputs(x)
    for chosen, jacobians in derivatives.jacobians(x, outputs):
        yield outputs[chosen], jacobians
