"""What became of a network: one row per parameter with its site, prior, posterior and status.

A conversion that nobody can read back hides its mistakes: a rule that caught one layer too many, a tied
weight counted twice, a BatchNorm weight made random by accident. :func:`describe` shows what became of each
network parameter and each other latent site, and below the table what happens to the buffers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import prod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from torch import nn

from pyrobnn.core.exclusive import exclusive
from pyrobnn.core.explanations import explained
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.estimators import EstimatorSpec, coverage
from pyrobnn.guides import Guide
from pyrobnn.guides.base import check_guide
from pyrobnn.guides.ensembles.base import MixtureOfDeltas
from pyrobnn.model.bayesianize import BayesianModule, bayesian_modules
from pyrobnn.model.divergence import PriorTerm, kl_or_difference
from pyrobnn.model.draws import Draws
from pyrobnn.model.priors import FixedPrior, Prior
from pyrobnn.model.stochastic import StochasticModule

__all__ = ["Description", "describe", "family", "new_row"]

_RUNNING_STATISTICS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


@dataclass(frozen=True, repr=False)
class Description:
    """The table that :func:`describe` makes; ``print`` it, or leave it as a notebook cell's last line.

    Attributes:
        rows: One dict per network parameter and per other latent site, in the model's order. Keys (None: does
            not apply): ``parameter``, its first name in the network; ``site``, Pyro's name; ``shape``;
            ``numel``; ``prior``; ``posterior``, the family of the guide's factor; ``kl``, ``"exact"`` or
            ``"Monte Carlo"``; ``status``, ``"random"``, ``"deterministic"`` (trained as a point) or
            ``"frozen"`` (never changed); ``tied``, a list of the parameter's other names; and if an estimator was
            asked about, ``estimator``, how the site's draws enter its layer.
        notes: Totals, parameters trained outside the network, and the policy for buffers, one line each.
    """

    rows: list[dict[str, Any]]
    notes: list[str]

    def __str__(self) -> str:
        header, *body = self._cells()
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        right = header.index("numel")
        lines = [
            "  ".join(
                cell.rjust(width) if i == right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in (header, ["─" * width for width in widths], *body)
        ]
        return "\n".join([*lines, "", *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, *body = self._cells()
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        lines = ("".join(f"<td>{escape(cell)}</td>" for cell in cells) for cells in body)
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        notes = "<br>".join(map(escape, self.notes))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{table}</tbody></table><p>{notes}</p>"

    def _cells(self) -> list[list[str]]:
        """Header and rows as text; the column of tied names is there only if some are."""
        columns = ["parameter", "site", "shape", "numel", "prior", "posterior", "kl", "status"]
        columns += [name for name in ("tied", "estimator") if any(row.get(name) for row in self.rows)]
        return [columns, *([_cell(row.get(column)) for column in columns] for row in self.rows)]


@explained
def describe(model: nn.Module, guide: Guide | None = None, *, estimator: EstimatorSpec = None) -> Description:
    """Lists every parameter and latent site of a model, and what the guide makes of it.

    Args:
        model: A :class:`~pyrobnn.SupervisedModel`, a bayesianized network, or any module that holds some.
            Without a guide, sites that a model of your own samples by itself are not known, so not listed.
        guide: The model's guide, for the columns ``posterior`` and ``kl``. The KL is exact where a closed
            form is registered for factor and prior, given the other sites where a prior depends on them; a
            point estimate has none.
        estimator: An estimator (:mod:`pyrobnn.estimators`), its name or rules: a further column says which weights
            it draws itself; those of layers that it does not handle have the draw shared by the batch.

    Returns:
        The table.

    Raises:
        TypeError: If ``model`` is no module, or ``guide`` is not one of this library.
        ValueError: If there is nothing to describe, or the guide is another model's.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a PyroModule, got {type(model).__name__}.")
    if guide is not None:
        check_guide(model, guide)
    factors = {} if guide is None else _factors(guide)
    rows = []
    for module in model.modules():
        if isinstance(module, BayesianModule):
            rows += [row for name in _tied_names(module.network) for row in _parameter_rows(module, name)]
        elif isinstance(module, StochasticModule):
            rows += [row for name in module.site_priors for row in _site_rows(module, name)]
    listed = {row["site"] for row in rows}
    for site in guide.layout.values() if guide is not None else ():
        if site.name not in listed:
            rows.append(new_row(None, site.name, site.shape, family(site.prior), "random"))
    if estimator is not None:
        reached = coverage(model, estimator)
        for row in rows:
            row["estimator"] = None if row["site"] is None else reached.get(row["site"], "shared")
    if not rows:
        raise ValueError("model: it holds no bayesianized network and no latent site; pass its guide, too.")
    for row in rows:
        is_latent = row["site"] is not None
        if guide is not None and is_latent and row["site"] not in factors:
            raise ValueError(f"guide: it lacks the model's site {row['site']!r}; pass the guide built from this model.")
        row["posterior"], row["kl"] = factors.get(row["site"], (None, None))
    return Description(rows, [*_totals(rows), *_trained_elsewhere(model), *_buffer_notes(model)])


def family(distribution: dist.Distribution) -> str:
    """A distribution's family, such as ``"Normal"``, or ``"exp(Normal)"`` where it is transformed."""
    if isinstance(distribution, dist.Delta):
        return "Delta"
    if isinstance(distribution, MixtureOfDeltas):
        return f"mixture of {len(distribution.points)} deltas"
    plain = base_distribution(distribution)
    if type(plain) is not dist.TransformedDistribution:
        return type(plain).__name__
    name = family(plain.base_dist)
    for transform in plain.transforms:
        for part in getattr(transform, "parts", [transform]):
            if not _is_identity(part):
                name = f"{type(part).__name__.removesuffix('Transform').lower()}({name})"
    return name


def _is_identity(transform: object) -> bool:
    """Supports with a lower bound shift by it, which for the positive reals means by nothing."""
    if not isinstance(transform, AffineTransform):
        return False
    loc, scale = torch.as_tensor(transform.loc), torch.as_tensor(transform.scale)
    return bool((loc == 0).all() and (scale == 1).all())


# ------------------------------------------------------------------------------------------------------- rows


def new_row(
    parameter: str | None, site: str | None, shape: Sequence[int], prior: str | None, status: str
) -> dict[str, Any]:
    """The row of a parameter or site, before its posterior is known."""
    return {
        "parameter": parameter,
        "site": site,
        "shape": tuple(shape),
        "numel": prod(shape),
        "prior": prior,
        "posterior": None,
        "kl": None,
        "status": status,
        "tied": [],
    }


def _tied_names(net: nn.Module) -> dict[str, list[str]]:
    """First name -> the other names, for each distinct parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: others for first, *others in names.values()}


def _parameter_rows(module: BayesianModule, name: str) -> Iterator[dict[str, Any]]:
    """The row of one network parameter, then those of the latent sites its prior adds."""
    parameter = module.network.get_parameter(name)
    if name in module.site_priors:
        rows = _site_rows(module, name)
        rows[0]["parameter"] = name
    else:
        status = "deterministic" if parameter.requires_grad else "frozen"
        rows = [new_row(name, None, parameter.shape, None, status)]
    rows[0]["tied"] = _tied_names(module.network)[name]
    yield from rows


def _site_rows(module: StochasticModule, name: str) -> list[dict[str, Any]]:
    prior = module.site_priors[name]
    # Given its auxiliary sites, a non-centered parameter is a plain value: it is random, but no site.
    site = full_name(module, name) if _is_sampled(prior) else None
    rows = [new_row(None, site, prior.shape, prior.extra_repr(), "random")]
    for suffix, auxiliary in prior.auxiliary.items():
        where = full_name(module, f"{name}.{suffix}")
        rows.append(new_row(None, where, auxiliary.shape, auxiliary.extra_repr(), "random"))
    return rows


def _is_sampled(prior: Prior) -> bool:
    """Whether the prior's conditional is a distribution to sample rather than a value."""
    if isinstance(prior, FixedPrior):
        return True
    with torch.no_grad():
        auxiliary = {suffix: torch.ones(p.shape) for suffix, p in prior.auxiliary.items()}
        return isinstance(prior.conditional(**auxiliary), dist.Distribution)


def _factors(guide: Guide) -> dict[str, tuple[str, str | None]]:
    """Family of the guide's factor and kind of KL, by site."""
    devices = sorted({p.device.index for p in guide.parameters() if p.is_cuda})
    with torch.no_grad(), exclusive(), torch.random.fork_rng(devices=devices):
        facts = guide.facts
        draws = guide.sample(1).at(0) if facts.density else Draws({})
        return {name: (family(guide.marginal(name)), _kl(guide, name, draws)) for name in guide.layout}


def _kl(guide: Guide, name: str, draws: Draws) -> str | None:
    """How the KL of a site is computed; None where there is none, as for a point."""
    if name not in guide.facts.density:
        return None
    group = next(group for group in guide.facts.independent if name in group)
    priors = {site: PriorTerm(guide.layout[site].prior) for site in guide.layout if site in group}
    exact = guide.part(name).divergence(Draws(draws), priors).exact
    if not exact and len(group) > 1:  # of coupled sites each has a cross-entropy of its own
        with contextlib.suppress(NotImplementedError):  # a site of a flow has no density of its own
            exact = kl_or_difference(guide.elementwise_marginal(name), priors[name].distribution, draws[name])[1]
    return "exact" if exact else "Monte Carlo"


# ------------------------------------------------------------------------------------------------------ notes


def _totals(rows: list[dict[str, Any]]) -> Iterator[str]:
    counts = dict.fromkeys(("random", "deterministic", "frozen"), 0)
    for row in rows:
        counts[row["status"]] += row["numel"] if row["parameter"] is not None else 0
    yield "Network parameters: " + ", ".join(f"{count:,} {status}" for status, count in counts.items()) + "."
    latent = [row for row in rows if row["site"] is not None]
    yield f"Latent sites: {len(latent):,}, with {sum(row['numel'] for row in latent):,} elements."


def _trained_elsewhere(model: nn.Module) -> Iterator[str]:
    """Trainable parameters that belong to no network: learned prior scales, a learned noise."""
    networks = {id(p) for module in bayesian_modules(model) for p in module.network.parameters()}
    names = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in networks]
    if names:
        yield f"Trained as points in addition to the network: {', '.join(names)}."


def _buffer_notes(model: nn.Module) -> Iterator[str]:
    policy = "updated once per training step, untouched by prediction"
    norms: list[nn.Module] = []
    others: list[str] = []
    for bayesian in bayesian_modules(model):
        for name, module in bayesian.network.named_modules():
            buffers = [key for key, _ in module.named_buffers(name, recurse=False)]
            if isinstance(module, _RUNNING_STATISTICS) and buffers:
                norms.append(module)
            else:
                others += buffers
    if norms:
        kinds = "/".join(sorted({type(module).__name__ for module in norms}))
        yield f"Buffers: running statistics of {len(norms)} {kinds} layer{'s' * (len(norms) > 1)}: {policy}."
    if others:
        yield f"Other buffers ({', '.join(others)}): if the network changes them, {policy}."


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        shown = [*value[:3], f"and {len(value) - 3:,} more"] if len(value) > 4 else value
        return ", ".join(shown) or "-"
    if isinstance(value, int):
        return f"{value:,}"
    return "scalar" if value == () else str(value)
