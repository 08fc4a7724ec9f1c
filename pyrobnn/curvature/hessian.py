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
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.model.substitution import SubstituteMessenger, unscaled_score

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
    point = torch.cat([values[site.name].detach().reshape(-1) for site in sites])

    def run(flat: Tensor, batch: Batch) -> SubstituteMessenger:
        parts = flat.split([site.numel for site in sites])
        moved = {site.name: part.view(values[site.name].shape) for site, part in zip(sites, parts, strict=True)}
        with SubstituteMessenger({**values, **moved}) as messages:
            model(*batch.args, **batch.kwargs)
        return messages

    hessian = torch.zeros(size, size, dtype=torch.float64, device=point.device)
    log_likelihood, log_prior, rows, stated = 0.0, 0.0, 0, declared_num_data(model)
    for index, batch in enumerate(batches):
        batch.check(index)
        with torch.enable_grad():
            leaf = point.clone().requires_grad_()
            messages = run(leaf, batch)
            _check_values(messages, values)
            observed = sum((_of_batch(message) for message in messages.observed), leaf.new_zeros(()))
            log_likelihood += float(observed.detach())
            stated = _full_size(messages) if stated is None else stated
            total = observed
            if index == 0:  # the prior counts once
                scores = {message["name"]: unscaled_score(message).sum() for message in messages.latent}
                log_prior = sum(float(scores[site.name].detach()) for site in sites)
                total = observed + sum(scores.values())
            hessian -= _second_derivatives(total, leaf).double()
        rows += batch.rows
    if not rows or (stated is not None and rows != stated):
        raise ValueError(
            f"loader: it yielded {rows} rows, but the model has {stated} data; curvature is summed over the whole data "
            "set, so pass all of it, without drop_last or a sampler that repeats."
        )
    hessian = 0.5 * (hessian + hessian.T)
    _write(groups, hessian, log_prior)
    return log_likelihood


def _second_derivatives(value: Tensor, leaf: Tensor) -> Tensor:
    """The matrix ``[n, n]`` of a function's second derivatives; zeros where it does not depend on the leaf."""
    size = len(leaf)
    if not value.requires_grad:
        return leaf.new_zeros(size, size)
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True, allow_unused=True)
    if slope is None or not slope.requires_grad:
        return leaf.new_zeros(size, size)
    found = [torch.autograd.grad(entry, leaf, retain_graph=True, allow_unused=True)[0] for entry in slope]
    return torch.stack([leaf.new_zeros(size) if row is None else row for row in found])


def _of_batch(message: Any) -> Tensor:
    """The log density of a batch's observation, without the factor that scales it to the data set."""
    total = unscaled_score(message).sum() * message["scale"]
    for frame in message["cond_indep_stack"]:
        if frame.vectorized and frame.full_size is not None and frame.full_size != frame.size:
            total = total * (frame.size / frame.full_size)
    return total


def _full_size(messages: SubstituteMessenger) -> int | None:
    """The size of the plate of the data, if the observations are in one that takes subsamples."""
    frames = [f for message in messages.observed for f in message["cond_indep_stack"] if f.vectorized]
    sizes = [f.full_size for f in frames if f.full_size is not None and f.full_size != f.size]
    return max(sizes, default=None)


def _check_values(messages: SubstituteMessenger, values: Mapping[str, Tensor]) -> None:
    missing = [message["name"] for message in messages.latent if message["name"] not in values]
    if missing:
        raise ValueError(
            f"given: the site {missing[0]!r} belongs to another guide, and its value is needed; pass given={{site: "
            "value}, such as {name: draw[0] for name, draw in other.sample(1).items()}."
        )


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
