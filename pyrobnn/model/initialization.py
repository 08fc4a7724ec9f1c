"""Starting values of guides: a network's weights, given values, draws or centers of the priors."""

# Pyro declares the attributes of torch distributions on subclasses only.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.model.bayesianize import BayesianModule, bayesian_modules
from pyrobnn.model.layout import Site
from pyrobnn.model.stochastic import StochasticModule

__all__ = ["Init", "initial_values", "network_values"]

Init: TypeAlias = nn.Module | Mapping[str, Tensor] | Callable[[str, dist.Distribution], Tensor] | str | None


def initial_values(model: Any, sites: Mapping[str, Site], init: Init) -> dict[str, Tensor]:
    """Starting values of the sites, unconstrained.

    Args:
        model: The model.
        sites: Its latent sites.
        init: Where to start: None (the weights the network was converted with), another network of the same
            architecture, ``"prior"`` (a draw), ``"prior_mean"``, a dict of site values, or a function
            ``(site name, prior) -> value``. Sites that ``init`` does not name start at the center of their
            prior.

    Raises:
        TypeError: If ``init`` is of another kind.
        ValueError: If a given value has the wrong shape or lies outside its site's support.
    """
    given = _given_values(model, sites, init)
    values = {}
    for site in sites.values():
        value = given[site.name] if site.name in given else _center(site.prior)
        value = torch.as_tensor(value).detach()
        if value.shape != site.shape:
            raise ValueError(
                f"init: the value for the site {site.name!r} has shape {tuple(value.shape)}, expected "
                f"{tuple(site.shape)}."
            )
        if not site.is_real and not bool(site.prior.support.check(value).all()):
            if site.name in given and init is not None and not isinstance(init, nn.Module):
                raise ValueError(f"init: the value for the site {site.name!r} lies outside its prior's support.")
            value = _center(site.prior)  # a network's weights need not fit a constrained prior
        values[site.name] = site.unconstrain(value).clone()
    return values


def network_values(module: BayesianModule, network: nn.Module) -> dict[str, Tensor]:
    """The weights of ``network`` as values of the sites of a converted network of the same architecture.

    Raises:
        ValueError: If a parameter is missing.
    """
    weights = dict(network.named_parameters())
    values = {}
    for name, prior in module.site_priors.items():
        if name not in weights:
            raise ValueError(f"init: the network has no parameter {name!r}; pass one of the model's own architecture.")
        for suffix, value in prior.initial(weights[name].detach()).items():
            values[full_name(module, f"{name}.{suffix}" if suffix else name)] = value
    return values


def _given_values(model: Any, sites: Mapping[str, Site], init: Init) -> Mapping[str, Tensor]:
    stored: dict[str, Tensor] = {}
    if isinstance(model, nn.Module):
        for module in model.modules():
            if isinstance(module, StochasticModule):
                stored.update(module.initial_values())
    if init is None:
        return stored
    if isinstance(init, nn.Module):
        converted = bayesian_modules(model)
        if len(converted) != 1:
            raise ValueError(
                f"init: the model holds {len(converted)} converted networks; give a dict of site values instead."
            )
        return stored | network_values(converted[0], init)
    if init == "prior":
        return {site.name: site.prior.sample() for site in sites.values()}
    if init == "prior_mean":
        return {}
    if isinstance(init, Mapping):
        unknown = sorted(set(init) - set(sites))
        if unknown:
            raise ValueError(
                f"init: there is no latent site {unknown[0]!r}; the model has {', '.join(list(sites)[:8])}."
            )
        return stored | dict(init)
    if callable(init):
        return {site.name: init(site.name, site.prior) for site in sites.values()}
    raise TypeError(f"init: expected a network, 'prior', 'prior_mean', a dict of values or a function, got {init!r}.")


def _center(prior: dist.Distribution) -> Tensor:
    """The prior's mean if finite, else the median of 101 draws (a half-Cauchy has no mean)."""
    device = torch.device("cpu")
    with contextlib.suppress(NotImplementedError, AttributeError):
        mean = prior.mean
        device = mean.device
        if bool(mean.isfinite().all()) and bool(prior.support.check(mean).all()):
            return mean
    with random_state.seeded(0, device):
        return prior.sample((101,)).median(0).values
