r"""From a posterior to ArviZ: leave-one-out, predictive checks, plots and netCDF for Bayesian networks.

For each draw :math:`w_s` the model runs once on all data, which gives the groups

* ``posterior``: the draws themselves, and ``prior``: as many draws from the prior;
* ``posterior_predictive``, ``prior_predictive``: targets :math:`\tilde y \sim p(y \mid x, w_s)`;
* ``log_likelihood``: :math:`\log p(y_i \mid x_i, w_s)` for each datum, unscaled and untempered;
* ``observed_data``: the targets;
* ``sample_stats``: of :class:`~pyrobnn.guides.Chains`, the statistics that the sampler recorded for each draw.

Variables have dimensions ``(chain, draw, ...)``. Observations have those of their plates (``data`` in a
:class:`~pyrobnn.SupervisedModel`), weights of linear and convolutional layers ``<layer>.out``, ``<layer>.in``
and so on, all else ``<site>_dim_<i>``. The schema is that of ArviZ 1.x; with ArviZ 0.x the same groups come
as an ``InferenceData``.

Vehtari, Gelman & Gabry, *Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC*
(2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pyro import poutine
from torch import Tensor

from pyrobnn._version import __version__
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics._arviz import from_groups
from pyrobnn.diagnostics._batches import Piece, batches
from pyrobnn.diagnostics._draws import (
    DrawsByChain,
    Posterior,
    at_draw,
    data_sites,
    evenly,
    prior_chain,
    read_chains,
    undisturbed,
)
from pyrobnn.diagnostics._layout import Layout, Variable, to_numpy
from pyrobnn.guides.base import Guide
from pyrobnn.model.substitution import SubstituteMessenger, unscaled_score

if TYPE_CHECKING:
    import xarray as xr
    from arviz import InferenceData

__all__ = ["GROUPS", "to_arviz"]

GROUPS = ("posterior", "posterior_predictive", "log_likelihood", "prior", "prior_predictive", "observed_data")
"""The groups, in the order in which they are stored."""

_NEED_TARGETS = {"log_likelihood", "observed_data"}


@explained
def to_arviz(
    model: Callable[..., Any],
    posterior: Posterior,
    *args: Any,
    num_samples: int | None = None,
    sites: Sequence[str] | None = None,
    groups: Iterable[str] | None = None,
    batch_size: int | None = None,
    max_bytes: int = 2**30,
    **kwargs: Any,
) -> InferenceData:
    """Converts a posterior to ArviZ's format: ``to_arviz(model, guide, x, y)``.

    Args:
        model: The Pyro model.
        posterior: A guide; draws ``{site: [K, *site shape]}``; a list of either, such as one guide per seed (a
            chain each); or a finished :class:`pyro.infer.MCMC` (its chains stay chains).
        *args: Arguments of the model: ``x, y`` for a :class:`~pyrobnn.SupervisedModel`. Without ``y`` there
            are predictive groups, but neither a log likelihood nor observed data.
        num_samples: Draws per chain. None takes 500 of a guide and all that an MCMC run has; a run with more is
            thinned.
        sites: Names or patterns (``"net.4.*"``) of the latent sites to store; None stores all of them. ``[]``
            leaves out the groups of weights; ``az.loo`` then needs ``reff=1.0``. The other groups always come
            from complete draws.
        groups: Which of :data:`GROUPS`, or ``"sample_stats"``, to make; None makes all that the arguments allow.
        batch_size: Rows of data that a :class:`~pyrobnn.SupervisedModel` sees at a time, which bounds memory and
            declares that each input has one entry for each row and that rows do not interact. None for one call of the
            model, as in training. Other models always see all of their data in one run.
        max_bytes: The largest result that is built.
        **kwargs: Keyword arguments of the model.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.x) or :class:`xarray.DataTree` (1.x). Draws of a guide are
        independent, so R-hat and effective sample size of a single guide say nothing about its quality; see
        :func:`~pyrobnn.diagnostics.check` and :func:`~pyrobnn.diagnostics.function_space_diagnostics`.

    Raises:
        TypeError: If ``posterior`` is of the wrong kind.
        ValueError: If the result would be larger than ``max_bytes``, a pattern or group is unknown, the
            arguments cannot give a group that is requested, or model and posterior do not belong together.
    """
    groups = [groups] if isinstance(groups, str) else None if groups is None else list(groups)
    asks_stats = groups is not None and "sample_stats" in groups
    pieces = batches(model, args, kwargs, batch_size)
    with undisturbed(model, pieces):
        chains = read_chains(model, posterior, num_samples, args, kwargs)
        layout = Layout(model, chains.first(), pieces)
        wanted = _choose_groups(None if groups is None else [g for g in groups if g != "sample_stats"], layout)
        variables = {group: layout.variables(group, sites) for group in wanted}
        wanted = [group for group in wanted if variables[group]]
        leads = {group: () if group == "observed_data" else chains.shape for group in wanted}
        leads.update({group: (1, chains.num_samples) for group in wanted if group.startswith("prior")})
        _check_size(variables, leads, max_bytes)
        attrs = {
            "inference_library": "pyrobnn",
            "inference_library_version": __version__,
            "posterior": type(posterior[0] if isinstance(posterior, list | tuple) else posterior).__name__,
        }
        data = {group: _allocate(variables[group], leads[group], attrs) for group in wanted}
        _fill(
            model,
            chains,
            pieces,
            *(data.get(g) for g in ("posterior", "posterior_predictive", "log_likelihood")),
        )
        if "prior" in data or "prior_predictive" in data:
            prior = prior_chain(model, set(layout.latent), chains.num_samples, pieces[0])
            _fill(model, prior, pieces, data.get("prior"), data.get("prior_predictive"), None)
        if "observed_data" in data:
            _fill_observed(model, layout.values, pieces, data["observed_data"])
        if groups is None or asks_stats:
            data |= _sample_stats(posterior, num_samples, attrs, needed=asks_stats)
    return from_groups(data)


# ----------------------------------------------------------------------------------------- choices and checks


def _choose_groups(groups: Iterable[str] | None, layout: Layout) -> list[str]:
    possible = [g for g in GROUPS if layout.has_targets or g not in _NEED_TARGETS]
    if not layout.predicted:
        possible = [g for g in possible if not g.endswith("_predictive")]
    if groups is None:
        return possible
    asked = list(groups)
    for group in asked:
        if group not in GROUPS:
            raise ValueError(f"groups: {group!r} is unknown; choose from {', '.join(GROUPS)}, sample_stats.")
        if group not in possible:
            raise ValueError(
                f"groups: {group!r} needs observations, but no site of this run of the model is observed; "
                "pass targets, as in to_arviz(model, guide, x, y)."
            )
    return [group for group in GROUPS if group in asked]


def _check_size(
    variables: Mapping[str, Mapping[str, Variable]], leads: Mapping[str, tuple[int, ...]], max_bytes: int
) -> None:
    sizes = {
        (group, name): math.prod(leads[group]) * math.prod(v.shape) * v.dtype.itemsize
        for group, members in variables.items()
        for name, v in members.items()
    }
    total = sum(sizes.values())
    if total <= max_bytes:
        return
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:6]
    listed = ", ".join(f"{g}/{n} {_megabytes(sizes[g, n])}" for g, n in largest)
    raise ValueError(
        f"max_bytes: the result would take {_megabytes(total)}, more than {_megabytes(max_bytes)}. Largest "
        f"parts: {listed}. Store fewer sites (sites=[] stores no weights), draws (num_samples) or groups, or "
        "raise max_bytes."
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.3g} MB" if size < 1e9 else f"{size / 1e9:,.3g} GB"


# ---------------------------------------------------------------------------------------------------- filling


def _allocate(variables: Mapping[str, Variable], lead: tuple[int, ...], attrs: dict[str, Any]) -> xr.Dataset:
    import xarray as xr

    lead_dims = ("chain", "draw")[: len(lead)]
    data = {name: ((*lead_dims, *v.dims), np.empty((*lead, *v.shape), v.dtype)) for name, v in variables.items()}
    sizes = dict(zip(lead_dims, lead, strict=True))
    for variable in variables.values():
        sizes.update(zip(variable.dims, variable.shape, strict=True))
    coords: dict[str, Any] = {dim: np.arange(size) for dim, size in sizes.items()}
    for variable in variables.values():
        coords.update({dim: np.array(names) for dim, names in variable.labels.items()})
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _fill(
    model: Any,
    chains: DrawsByChain,
    pieces: list[Piece],
    latent: xr.Dataset | None,
    predictive: xr.Dataset | None,
    log_likelihood: xr.Dataset | None,
) -> None:
    """Writes all draws into the datasets that are not None."""
    needs_data = predictive is not None or log_likelihood is not None
    if latent is None and not needs_data:
        return
    for chain, draw, values in chains:
        if latent is not None:
            for name in latent:
                latent[name].values[chain, draw] = to_numpy(values[str(name)])
        for rows, args, kwargs, _ in pieces if needs_data else ():
            with at_draw(model, values) as run:
                model(*args, **kwargs)
            if log_likelihood is not None:
                for message in data_sites(run.observed):
                    log_likelihood[message["name"]].values[chain, draw, rows] = to_numpy(unscaled_score(message))
            if predictive is not None:
                for name, value in _predict(model, values, run, args, kwargs).items():
                    predictive[name].values[chain, draw, rows] = to_numpy(value)


def _sample_stats(
    posterior: Any, num_samples: int | None, attrs: dict[str, Any], needed: bool
) -> dict[str, xr.Dataset]:
    """The sampler's figures of the draws that are stored, flags as such."""
    import xarray as xr

    stats = posterior.sample_stats() if isinstance(posterior, Guide) else {}
    if not stats:
        if needed:
            raise ValueError(
                "groups: 'sample_stats' needs Chains of a sampler that recorded some; this posterior has none."
            )
        return {}
    num_chains, length = posterior.facts.chain_shape
    kept = evenly(length, num_samples)
    values = {name: to_numpy(value[:, kept.to(value.device)]) for name, value in stats.items()}
    if "diverging" in values:
        values["diverging"] = values["diverging"].astype(bool)
    lead = {"chain": np.arange(num_chains), "draw": np.arange(len(kept))}
    return {
        "sample_stats": xr.Dataset({n: (["chain", "draw"], v) for n, v in values.items()}, coords=lead, attrs=attrs)
    }


def _fill_observed(model: Any, values: dict[str, Tensor], pieces: list[Piece], observed: xr.Dataset) -> None:
    for rows, args, kwargs, _ in pieces:
        with SubstituteMessenger(values) as run:
            model(*args, **kwargs)
        for message in data_sites(run.observed):
            observed[message["name"]].values[rows] = to_numpy(message["value"])


def _predict(
    model: Any, values: dict[str, Tensor], run: SubstituteMessenger, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Draws the observations, given a run of the model at this draw."""
    observed = data_sites(run.observed)
    if len(observed) == 1:
        return {observed[0]["name"]: observed[0]["fn"].sample()}
    if observed:
        # One observation may depend on the value of another: draw them all in one run.
        with at_draw(model, values) as run:
            poutine.uncondition(model)(*args, **kwargs)
    names = {message["name"] for message in observed}
    return {m["name"]: m["value"] for m in run.latent if (m["name"] in names if names else m["name"] not in values)}
