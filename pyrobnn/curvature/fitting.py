"""Filling blocks: curvature over a whole data set, and the prior's part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Batch
from pyrobnn.core.finite import weighted
from pyrobnn.curvature.blocks import DiagonalBlock, KroneckerBlock
from pyrobnn.curvature.dense import DenseBlock
from pyrobnn.curvature.features import LastLayer, LastLayerSums, features_of
from pyrobnn.curvature.fisher import information_of
from pyrobnn.curvature.gauss_newton import GaussNewtonSums
from pyrobnn.curvature.kronecker import KroneckerFactors, add_batch
from pyrobnn.curvature.last_layer import Run, find_last_layer
from pyrobnn.curvature.layout import Group, Structure, lay_out
from pyrobnn.distributions.fixed_row import FixedRow, without_row
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.model.last_layer import recorded_calls
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

if TYPE_CHECKING:
    from pyrobnn.model.layout import Site

__all__ = ["Curvature", "fill", "fit_curvature"]


@dataclass(frozen=True)
class Curvature:
    """What a fit found.

    Attributes:
        groups: The groups, with their blocks.
        last_layer: The layer, if it is the only one that is covered.
        log_likelihood: Log likelihood of all data at the mode, in nats.
        is_normal: Whether all the groups' priors are Normal.
    """

    groups: list[Group]
    last_layer: LastLayer | None
    log_likelihood: float
    is_normal: bool


def fit_curvature(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    sites: Mapping[str, Site],
    batches: Iterator[Batch],
    *,
    structure: Structure,
    last_layer: str | bool,
    like: Tensor,
    max_bytes: int,
) -> Curvature:
    """The curvature of a structure, with the last layer found by a run on the first batch.

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites: the mode.
        sites: The sites that may be covered.
        batches: The whole data set.
        structure: The structure.
        last_layer: The name of the only layer to cover, True to find it, False for all layers.
        like: The flat vector.
        max_bytes: Budget for Jacobians.

    Raises:
        TypeError: If targets are of a wrong dtype.
        ValueError: As :func:`fill` and :func:`~pyrobnn.curvature.find_last_layer` say.
    """
    found = run = None
    if last_layer is not False or structure == "diagonal":
        if (first := next(batches, None)) is None:
            raise ValueError(_wrong_rows(0, model))
        batches = chain([first], batches)
        name = last_layer if isinstance(last_layer, str) else None
        try:
            found, run = find_last_layer(model, values, sites, first.inputs, name)
        except ValueError:
            if last_layer is not False:  # else it is only faster, with thousands of outputs
                raise
    only = None if found is None or last_layer is False else found.name
    groups = lay_out(model, sites, structure, only, like)
    log_likelihood, is_normal = fill(
        model, values, groups, batches, max_bytes=max_bytes, last_layer=found, first_run=run
    )
    return Curvature(groups, None if last_layer is False else found, log_likelihood, is_normal)


def fill(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    groups: Sequence[Group],
    batches: Iterable[Batch],
    *,
    max_bytes: int,
    last_layer: LastLayer | None = None,
    first_run: Run | None = None,
) -> tuple[float, bool]:
    """Sets every group's block from the data and the model's priors.

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites: the mode.
        groups: The groups.
        batches: The whole data set.
        max_bytes: Budget for Jacobians.
        last_layer: The last layer, if its curvature is to be had from its inputs; required if it alone is covered.
        first_run: The run of the first batch, if it was run already.

    Returns:
        The log likelihood of all data at the mode, and whether all the groups' priors are Normal.

    Raises:
        TypeError: If targets are of a wrong dtype.
        ValueError: If there are not the model's ``num_data`` rows, inputs or targets are wrong, a site has no value, or
            a prior is not log-concave at the mode.
    """
    check_positive_int("max_bytes", max_bytes)
    priors = _priors(model, values)
    curvature = _Curvature(model, values, groups, max_bytes, last_layer)
    log_likelihood, rows = 0.0, 0
    for index, batch in enumerate(batches):
        batch.check(index)
        log_likelihood += curvature.add(batch, first_run if index == 0 else None)
        rows += batch.rows
    if rows != model.num_data:
        raise ValueError(_wrong_rows(rows, model))
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


def _wrong_rows(rows: int, model: SupervisedModel) -> str:
    return (
        f"loader: it yielded {rows} rows, but the model has num_data={model.num_data}; curvature is summed over the "
        "whole data set, so pass all of it, without drop_last or a sampler that repeats."
    )


def _lead(block: Any) -> int:
    return block.shape[0] if isinstance(block, KroneckerBlock) else 1


class _Curvature:
    """Running sums over batches, of the kind that the groups' blocks need."""

    def __init__(
        self,
        model: SupervisedModel,
        values: Mapping[str, Tensor],
        groups: Sequence[Group],
        max_bytes: int,
        last_layer: LastLayer | None,
    ) -> None:
        self.model, self.values, self.groups = model, values, groups
        self.names = [site.name for group in groups for site in group.sites]
        self.factors = {g.name: KroneckerFactors(g.layer, len(g.sites) == 2) for g in groups if g.layer is not None}
        self.last_layer = last_layer if last_layer is not None and last_layer.is_output else None
        self.watched = {} if self.last_layer is None else {self.last_layer.name: self.last_layer.module}
        # Sums of a dense matrix are collected where they stay: the matrix may be hundreds of megabytes.
        block = groups[0].block
        dense = block.curvature.zero_() if isinstance(block, DenseBlock) else None
        self.sums = LastLayerSums(dense, self.last_layer is not None and self.last_layer.has_bias, max_bytes)
        head = [] if self.last_layer is None else [g for g in groups if g.name == self.last_layer.name]
        self.rest = GaussNewtonSums(model, values, [g for g in groups if g not in head], max_bytes, dense)
        self.head = GaussNewtonSums(model, values, head, max_bytes, dense)

    def add(self, batch: Batch, run: Run | None = None) -> float:
        """Adds a batch, and returns its log likelihood; ``run`` is that of its inputs, if there is one."""
        x, y, weight, likelihood = batch.inputs, batch.targets, batch.weight, self.model.likelihood
        with torch.no_grad(), SubstituteMessenger(self.values):
            if run is None:
                with recorded_calls(self.watched) as calls:
                    run = Run(self.model.predictive(x), calls)
            outputs = run.outputs
            likelihood.check_targets(outputs, y)
            log_prob = likelihood(outputs).log_prob(y).double()
            log_likelihood = float(weighted(log_prob, weight).sum())
            is_done, layer = False, self.last_layer
            if layer is not None and (features := features_of(layer, run.calls, outputs)) is not None:
                information = information_of(likelihood, outputs, weight, targets=y)
                is_done = self.sums.add(features, information, weight, self.factors.get(layer.name))
        if self.factors:
            if not is_done:
                add_batch(self.model, self.values, self.names, self.factors, x, weight, y)
            return log_likelihood
        for part in (self.rest,) if is_done else (self.head, self.rest):
            part.add(x, outputs, weight, y)
        return log_likelihood

    def write(self, index: int, precision: Tensor) -> None:
        """Sets the block of one group."""
        block, group = self.groups[index].block, self.groups[index]
        if isinstance(block, KroneckerBlock):
            sums = self.factors[group.name]
            rows = sums.rows or 1.0  # all weights are 0: nothing is known
            block.set(torch.as_tensor(sums.of_outputs) / rows, torch.as_tensor(sums.of_inputs), precision)
            return
        if isinstance(block, DenseBlock):
            block.set(block.curvature, precision)
        elif isinstance(block, DiagonalBlock):
            is_head = group in self.head.groups
            part = (self.head if is_head else self.rest).diagonal_of(group)
            block.set(torch.as_tensor(part + self.sums.diagonal if is_head else part), precision)


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
    if isinstance(prior, FixedRow):
        prior, value = prior.others, without_row(value, prior.index)
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
