"""Starting values of guides: a network's weights, another guide, given values, draws or centers of the priors."""

# Pyro declares the attributes of torch distributions on subclasses only.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.model.agreement import latent_shapes
from pyrobnn.model.bayesianize import BayesianModule, bayesian_modules
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Site
from pyrobnn.model.network_copy import copied
from pyrobnn.model.stochastic import stored_values

__all__ = [
    "Init",
    "StartingPoint",
    "check_start_sites",
    "he_values",
    "initial_values",
    "known_sites",
    "network_of",
    "num_draws",
    "refuse_other_buffers",
    "unwrapped",
]

Init: TypeAlias = nn.Module | Mapping[str, Tensor] | Callable[[str, dist.Distribution], Tensor] | str | None
"""Where to start; guides are modules."""

_HE_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


class StartingPoint:
    """What other guides can start from: the base of guides."""

    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}``."""
        raise NotImplementedError

    def starting_point(self) -> Draws:
        """One value of each site where a guide of one point or mean starts; by default a draw."""
        return self.sample(1).at(0)


def initial_values(model: Any, sites: Mapping[str, Site], init: Init) -> dict[str, Tensor]:
    """Starting values of the sites, unconstrained; they share no memory with what was given.

    Args:
        model: The model.
        sites: Its latent sites.
        init: Where to start: None (the weights the network was converted with), another network of the same
            architecture or its state dict, a guide (:meth:`StartingPoint.starting_point`), ``"he"`` (fresh weights of
            linear and convolutional layers, :func:`he_values`), ``"prior"`` (a draw), ``"prior_mean"``, a dict of site
            values or of draws (the first of them), or a function ``(site name, prior) -> value``. Sites that a dict of
            site values does not name start as with None, at the center of their prior where that says nothing.

    Raises:
        TypeError: If ``init`` is of another kind.
        ValueError: If it names a site that the model does not have, or a network does not fit the model's, or a given
            value has the wrong shape, is not finite or lies outside its site's support.
    """
    stored = stored_values(model)
    given = _given_values(model, sites, stored, init)
    values = {}
    for site in sites.values():
        value = _as_tensor(site, given[site.name], stored) if site.name in given else _center(site.prior)
        if value.shape != site.shape:
            raise ValueError(
                f"init: the value for the site {site.name!r} has shape {tuple(value.shape)}, expected "
                f"{tuple(site.shape)}."
            )
        if site.name in given and not bool(value.isfinite().all()):
            raise ValueError(f"init: the value for the site {site.name!r} is NaN or infinite in places.")
        if not site.is_real and not bool(site.prior.support.check(value).all()):
            is_network = isinstance(init, nn.Module) and not isinstance(init, StartingPoint)
            if site.name in given and init is not None and not is_network:
                raise ValueError(f"init: the value for the site {site.name!r} lies outside its prior's support.")
            value = _center(site.prior)  # a network's weights need not fit a constrained prior
        values[site.name] = site.unconstrain(value).clone()
    return values


def he_values(model: Any) -> dict[str, Tensor]:
    r"""Fresh weights of linear and convolutional layers, :math:`N(0, 2 / \text{fan-in})`, and biases of 0.

    The signal keeps its size through layers of ReLUs, where torch's own starting weights shrink it by
    :math:`\sqrt 6` in each, so that deep networks start flat. Values of a trained network are not used. He et al.,
    "Delving deep into rectifiers", ICCV 2015.

    Args:
        model: The model.

    Returns:
        Values of sites by name in the model; those of other layers are not among them.

    Raises:
        ValueError: If the model has no such layer.
    """
    values: dict[str, Tensor] = {}
    for module in bayesian_modules(model) if isinstance(model, nn.Module) else []:
        network, names = copied(module.network, hollow=module.shared), set()
        for path, layer in network.named_modules():
            own = dict(layer.named_parameters(recurse=False))
            if not isinstance(layer, _HE_LAYERS) or "weight" not in own:
                continue
            nn.init.kaiming_normal_(own["weight"], nonlinearity="relu")
            if "bias" in own:
                nn.init.zeros_(own["bias"])
            names |= {f"{path}.{local}" if path else local for local in own}
        chosen = {full_name(module, name) for name in names}
        fresh = module.values_of(network)
        values |= {site: v for site, v in fresh.items() if any(site == n or site.startswith(f"{n}.") for n in chosen)}
    if not values:
        raise ValueError("init: 'he' is for linear and convolutional layers, and the model has none with a prior.")
    return values


def network_of(
    module: BayesianModule, source: nn.Module | Mapping[str, Any], argument: str = "init", *, own_buffers: bool = False
) -> nn.Module:
    """A copy of a converted network that holds the weights and buffers of another one.

    Prefixes of wrappers (``module.`` of ``DataParallel``, ``_orig_mod.`` of ``torch.compile``) are taken off.

    Args:
        module: The converted network.
        source: A network of the same architecture, or its state dict.
        argument: What errors name.
        own_buffers: Whether the buffers are used, too, so that they may differ from those of the model.

    Raises:
        ValueError: If it is of another architecture, or what the model has no prior for, and therefore keeps, differs.
    """
    what = "network" if isinstance(source, nn.Module) else "state dict"
    state = source.state_dict() if isinstance(source, nn.Module) else source
    network = copied(module.network)
    try:
        network.load_state_dict(unwrapped(state, network.state_dict()))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{argument}: the {what} does not fit the model's network: {' '.join(str(error).split())}"
        ) from error
    taken = {alias for aliases in module.parameter_names.values() for alias in aliases}
    kept = dict(module.network.named_parameters()) | ({} if own_buffers else dict(module.network.named_buffers()))
    found = dict(network.named_parameters()) | dict(network.named_buffers())
    for name, value in kept.items():
        if name not in taken and not torch.equal(found[name], value) and not name.endswith("num_batches_tracked"):
            raise ValueError(
                f"{argument}: the {what} differs from the model's network in {name!r}, which has no prior, so that the "
                "model's own value is used; build the model with this network, or name the parameter in the prior "
                "rules, as in [(nn.BatchNorm2d, Normal(0., 1.)), ('*', ...)]."
            )
    return network


def unwrapped(state: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """A state dict without the prefixes that wrappers of networks add to all names."""
    state = dict(state)
    while state and not set(state) & set(own):
        prefix = next((p for p in _WRAPPERS if all(str(name).startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def known_sites(model: Any, sites: Collection[str]) -> set[str]:
    """Names of all latent sites of the model, those of other guides as well, as far as it declares them."""
    return set(sites) | set(latent_shapes(model) or ())


def num_draws(values: Mapping[str, Any], sites: Mapping[str, Site]) -> int | None:
    """Number K of draws in ``{site: [K, *site shape]}``; None if the values are one of each site, or something else."""
    found = {
        len(value) if isinstance(value, Tensor) and value.dim() and value.shape[1:] == sites[name].shape else None
        for name, value in values.items()
        if name in sites
    }
    return found.pop() if len(found) == 1 else None


def check_start_sites(model: Any, sites: Mapping[str, Site], values: Collection[str], guide: object) -> None:
    """Refuses a guide to start from that lacks a site, or has one that the model has not.

    Raises:
        ValueError: If it does.
    """
    kind, known = type(guide).__name__, known_sites(model, sites)
    if missing := [name for name in sites if name not in values]:
        raise ValueError(f"init: the {kind} guide has no site {missing[0]!r}; pass that of this model.")
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"init: the {kind} guide has a site {unknown[0]!r}, which the model has not.")


def refuse_other_buffers(model: Any, given: Mapping[str, Tensor]) -> None:
    """Refuses the running statistics of a member or draw where the model's own are used, if they differ.

    Raises:
        ValueError: If they do.
    """
    own = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
    for name, value in given.items():
        if not name.endswith("num_batches_tracked") and not torch.equal(value.to(own[name]), own[name]):
            raise ValueError(
                f"init: what was given has a buffer {name!r} of its own, which differs from the model's, and the "
                "model's is used; build the model with that network, or start from the values alone, dict(draws), and "
                "train, or re-estimate the statistics with recalibrate_batch_norm."
            )


def _given_values(model: Any, sites: Mapping[str, Site], stored: dict[str, Tensor], init: Init) -> Mapping[str, Any]:
    if init is None:
        return stored
    if isinstance(init, str) and init == "prior":
        return {site.name: site.prior.sample() for site in sites.values()}
    if isinstance(init, str) and init == "prior_mean":
        return {}
    if isinstance(init, str) and init == "he":
        return stored | he_values(model)
    if isinstance(init, StartingPoint):
        point = init.starting_point()
        check_start_sites(model, sites, point, init)
        refuse_other_buffers(model, point.buffers)
        return point
    converted = bayesian_modules(model) if isinstance(model, nn.Module) else []
    if isinstance(init, Mapping):
        if set(init) <= known_sites(model, sites):
            if num_draws(init, sites) is not None:
                init = Draws.of(init).at(0)
            refuse_other_buffers(model, Draws.of(init).buffers)
            return stored | dict(init)
        names = {name for module in converted for name in module.network.state_dict()}
        if not set(unwrapped(init, names)) & names:
            unknown = next((name for name in init if name not in sites), None)
            raise ValueError(f"init: there is no latent site {unknown!r}; the model has {', '.join(list(sites)[:8])}.")
    elif not isinstance(init, nn.Module):
        if not isinstance(init, type) and callable(init):
            return {site.name: init(site.name, site.prior) for site in sites.values()}
        raise TypeError(
            "init: expected a network, a guide, 'he', 'prior', 'prior_mean', a dict of values or a function, got "
            f"{init!r}."
        )
    if len(converted) != 1:
        raise ValueError(
            f"init: the model holds {len(converted)} converted networks; give a dict of site values instead."
        )
    return stored | converted[0].values_of(network_of(converted[0], init))


def _as_tensor(site: Site, value: Any, stored: Mapping[str, Tensor]) -> Tensor:
    """A given value in the precision that the site has, if that is known."""
    try:
        value = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"init: the value for the site {site.name!r} is no tensor, but {value!r}.") from error
    if value.is_complex():
        raise TypeError(f"init: the value for the site {site.name!r} is complex.")
    known = stored.get(site.name)
    if known is not None:
        return value.to(known)
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


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
