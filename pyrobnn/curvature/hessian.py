r"""The Hessian of a Pyro model's log joint density, for models whose network and likelihood are not known apart.

.. math::  J = -\nabla^2 \Big[ \sum_n \log p(y_n \mid w) + \log p(w) \Big]

over the real-valued sites w, at given values of all others, by one backward pass for each number in w and batch. It is
exact, so that at a maximum it has no negative eigenvalue; the generalized Gauss–Newton matrix of a
:class:`~pyrobnn.SupervisedModel` has none anywhere. Where it has one the point is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.batches import Batch
from pyrobnn.curvature.blocks import DiagonalBlock
from pyrobnn.curvature.dense import DenseBlock
from pyrobnn.curvature.layout import Group
from pyrobnn.curvature.log_joint import LogJoint, second_derivatives
from pyrobnn.model.declarations import declared_num_data

__all__ = ["MAX_HESSIAN", "fill_by_hessian"]

MAX_HESSIAN = 2_000
"""The largest number of covered weights: a batch takes as many backward passes."""


def fill_by_hessian(
    model: Any, values: Mapping[str, Tensor], groups: Sequence[Group], batches: Iterator[Batch]
) -> float:
    """Sets every group's block from the model's log joint density.

    Args:
        model: The model, in evaluation mode, called as ``model(*args, **kwargs)`` of a batch.
        values: Values of all its sites: the mode.
        groups: The groups, of dense or diagonal blocks.
        batches: The whole data set.

    Returns:
        The log likelihood of all data at the mode.

    Raises:
        ValueError: If there are more than 2,000 weights, a site has no value, the batches are not the whole data set,
            or the Hessian is not positive definite.
    """
    sites = [site for group in groups for site in group.sites]
    size = sum(site.numel for site in sites)
    if size > MAX_HESSIAN:
        raise ValueError(
            f"structure: curvature of a Pyro model of your own takes a backward pass for each of its {size:,} real "
            f"numbers, at most {MAX_HESSIAN:,}; make it a SupervisedModel, or take another guide (LowRankNormal, say)."
        )
    log_joint = LogJoint(model, values, sites)
    hessian = torch.zeros(size, size, dtype=torch.float64, device=log_joint.point.device)
    log_likelihood, log_prior, rows, stated = 0.0, 0.0, 0, declared_num_data(model)
    for index, batch in enumerate(batches):
        batch.check(index)
        with torch.enable_grad():
            leaf = log_joint.point.clone().requires_grad_()
            scores = log_joint.scores(leaf, batch)
            log_likelihood += float(scores.likelihood.detach())
            stated = scores.full_size if stated is None else stated
            if index == 0:
                log_prior = scores.prior_of_sites
            total = scores.likelihood + scores.prior if index == 0 else scores.likelihood  # the prior counts once
            hessian -= second_derivatives(total, leaf).double()
        rows += batch.rows
    if not rows or (stated is not None and rows != stated):
        raise ValueError(
            f"loader: it yielded {rows} rows, but the model has {stated} data; curvature is summed over the whole data "
            "set, so pass all of it, without drop_last or a sampler that repeats."
        )
    hessian = 0.5 * (hessian + hessian.T)
    _write(groups, hessian, log_prior)
    return log_likelihood


def _write(groups: Sequence[Group], hessian: Tensor, log_prior: float) -> None:
    """Splits the Hessian into the unit matrix, which stands for a prior's precision, and the rest."""
    if bool((~hessian.isfinite()).any()):
        raise ValueError("model: second derivatives of its log density at the mode are NaN or infinite.")
    start = 0
    for index, group in enumerate(groups):
        block = group.block
        assert isinstance(block, DenseBlock | DiagonalBlock)
        rows = slice(start, start + block.size)
        part = hessian[rows, rows] if isinstance(block, DenseBlock) else hessian.diagonal()[rows]
        smallest = float(torch.linalg.eigvalsh(part)[0] if part.dim() == 2 else part.min())
        if smallest <= 0:
            raise ValueError(
                f"model: its log density is no maximum at the mode (the Hessian of {group.name!r} has an eigenvalue of "
                f"{smallest:.3g}), so there is no Gaussian around it; train longer, or take a guide without curvature "
                "(LowRankNormal, say)."
            )
        # P + H is the Hessian, with a diagonal P that keeps A = P^-1/2 H P^-1/2 well scaled.
        precision = part.diagonal().clone() if part.dim() == 2 else part.clone()
        share = min(1.0, smallest / float(precision.max())) * 0.5
        precision *= share
        block.set(part - torch.diag(precision) if part.dim() == 2 else part - precision, precision)
        block.log_prior.fill_(log_prior if index == 0 else 0.0)
        block.prior_squares.fill_(0.0)
        start += block.size
