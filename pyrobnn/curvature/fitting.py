"""Filling blocks: curvature over a whole data set, and the prior's part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrobnn.core.batches import Batch
from pyrobnn.curvature.blocks import DenseBlock, DiagonalBlock, KroneckerBlock
from pyrobnn.curvature.gauss_newton import gauss_newton
from pyrobnn.curvature.kronecker import KroneckerFactors, add_batch
from pyrobnn.curvature.layout import Group
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["fill"]


def fill(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    groups: Sequence[Group],
    loader: Iterable[Any],
    *,
    max_bytes: int,
    progress: bool = False,
) -> tuple[float, bool]:
    """Sets every group's block from the data and the model's priors.

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites: the mode.
        groups: The groups.
        loader: The whole data set in batches, as for :func:`pyrobnn.fit`, without weights.
        max_bytes: Budget for Jacobians.
        progress: Show a progress bar.

    Returns:
        The log likelihood of all data at the mode, and whether all the groups' priors are Normal.

    Raises:
        TypeError: If a batch is of no known form, or has weights.
        ValueError: If the loader does not hold the model's ``num_data`` rows, a site has no value, or a prior is not
            log-concave at the mode.
    """
    priors = _priors(model, values)
    device = next(iter(values.values())).device
    curvature = _Curvature(model, values, groups, max_bytes)
    log_likelihood, rows = 0.0, 0
    for raw in tqdm(loader, disable=not progress, unit="batch"):
        batch = Batch.read(raw, device)
        if batch.weight is not None:
            raise TypeError("loader: its batches bring weights, which the curvature does not take; pass (x, y).")
        x, y = batch.inputs, batch.targets
        with torch.no_grad(), SubstituteMessenger(values):
            outputs = model.predictive(x)
            model.likelihood.check_shape(outputs, y)
            log_likelihood += float(model.likelihood(outputs).log_prob(y).double().sum())
        curvature.add(x)
        rows += len(y)
    if rows != model.num_data:
        raise ValueError(
            f"loader: it yielded {rows} rows, but the model has num_data={model.num_data}; curvature is summed over "
            "the whole data set, so pass all of it, without drop_last or a sampler that repeats."
        )
    all_normal = True
    for index, group in enumerate(groups):
        parts = [_quadratic(site.name, priors[site.name], values[site.name]) for site in group.sites]
        block = group.block
        precision = torch.cat([part.precision.reshape(_lead(block), -1) for part in parts], -1).reshape(-1).double()
        try:
            curvature.write(index, precision)
        except ValueError as error:
            raise ValueError(
                f"structure: 'kronecker' cannot take the layer {group.name!r}: {error}; use 'diagonal' or 'last_layer'."
            ) from error
        block.log_prior.fill_(sum(part.log_density for part in parts))
        block.prior_squares.fill_(sum(part.squares for part in parts))
        all_normal &= all(part.is_normal for part in parts)
    return log_likelihood, all_normal


def _lead(block: Any) -> int:
    return block.shape[0] if isinstance(block, KroneckerBlock) else 1


class _Curvature:
    """Running sums over batches, of the kind that the groups' blocks need."""

    def __init__(
        self, model: SupervisedModel, values: Mapping[str, Tensor], groups: Sequence[Group], max_bytes: int
    ) -> None:
        self.model, self.values, self.groups, self.max_bytes = model, values, groups, max_bytes
        self.names = [site.name for group in groups for site in group.sites]
        self.matrix: Tensor | float = 0.0
        self.factors = {g.name: KroneckerFactors(g.layer, len(g.sites) == 2) for g in groups if g.layer is not None}

    def add(self, x: Any) -> None:
        if self.factors:
            add_batch(self.model, self.values, self.names, self.factors, x)
            return
        diagonal = isinstance(self.groups[0].block, DiagonalBlock)
        part = gauss_newton(self.model, self.values, self.names, x, diagonal=diagonal, max_bytes=self.max_bytes)
        self.matrix = self.matrix + part

    def write(self, index: int, precision: Tensor) -> None:
        """Sets the block of one group."""
        block = self.groups[index].block
        if isinstance(block, KroneckerBlock):
            sums = self.factors[self.groups[index].name]
            block.set(torch.as_tensor(sums.of_outputs) / sums.rows, torch.as_tensor(sums.of_inputs), precision)
            return
        assert isinstance(self.matrix, Tensor)
        if isinstance(block, DenseBlock):
            block.set(self.matrix, precision)
        elif isinstance(block, DiagonalBlock):
            start = sum(group.block.size for group in self.groups[:index])
            block.set(self.matrix[start : start + block.size], precision)


def _priors(model: SupervisedModel, values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Each site's prior, given the others at the mode."""
    with torch.no_grad(), SubstituteMessenger(values) as run:
        model.sample_latents()
    missing = [message["name"] for message in run.latent if message["name"] not in values]
    if missing:
        raise ValueError(
            f"given: the site {missing[0]!r} belongs to another guide, and its value is needed; pass given={{site: "
            "value}, such as {name: draw[0] for name, draw in other.sample(1).items()}."
        )
    return {message["name"]: message["fn"] for message in run.latent}


class _Quadratic:
    """A prior's second-order expansion at a value: precision by element, and what the evidence needs."""

    def __init__(self, log_density: float, precision: Tensor, squares: float, is_normal: bool) -> None:
        self.log_density, self.precision = log_density, precision
        self.squares, self.is_normal = squares, is_normal


def _quadratic(name: str, prior: Any, value: Tensor) -> _Quadratic:
    """``-∂² log p``, in closed form for Normal priors.

    Raises:
        ValueError: If the elements are not independent or the curvature is not positive everywhere.
    """
    log_density = float(prior.log_prob(value).double().sum())
    base = base_distribution(prior)
    if isinstance(base, dist.Normal):
        precision = base.scale.detach().double().pow(-2).expand(value.shape)
        squares = float((precision * (value - base.loc.detach()).double().square()).sum())
        return _Quadratic(log_density, precision, squares, True)
    with torch.enable_grad():
        leaf = value.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(prior.log_prob(leaf).sum(), leaf, create_graph=True)
        precision = torch.zeros_like(leaf)
        if slope.requires_grad:
            precision = -torch.autograd.grad(slope.sum(), leaf)[0]
    if base.event_shape or not bool((precision > 0).all()):
        raise ValueError(
            f"site {name!r}: its prior {type(base).__name__} has no positive second derivative by element at the mode, "
            "so there is no Gaussian approximation; give it a Normal prior, or use another guide for it."
        )
    return _Quadratic(log_density, precision.double(), 0.0, False)
