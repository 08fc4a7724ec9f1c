"""Which weights dropout masks, by how much, and which column of its matrix each weight is in."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_number
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.model.bayesianize import BayesianModule, bayesian_modules
from pyrobnn.model.dropout import DROPOUTS, dropout_rates
from pyrobnn.model.layout import Site
from pyrobnn.model.priors import HorseshoePrior

__all__ = ["Maskable", "Rates", "maskable_sites", "resolve_rates"]

Rates = float | Sequence[tuple[str, float]] | Literal["network"]

_LINEAR_OR_CONV = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# max(0, z x) = z max(0, x) for z >= 0: a mask may move across these.
_TRANSPARENT = (nn.Identity, nn.ReLU, nn.LeakyReLU)


@dataclass(frozen=True)
class Maskable:
    """A weight whose input units can be dropped.

    Attributes:
        site: Its site.
        parameter: Its name in the network.
        module: The layer.
        network: The converted network.
        columns: The input unit of each weight, in the site's shape.
        num_columns: How many there are.
    """

    site: Site
    parameter: str
    module: nn.Module
    network: BayesianModule
    columns: Tensor
    num_columns: int

    @property
    def is_default(self) -> bool:
        """Whether it is masked by default: in a linear or convolutional layer, with more than one unit."""
        return isinstance(self.module, _LINEAR_OR_CONV + _TRANSPOSED) and self.num_columns > 1


def maskable_sites(model: Any, sites: Mapping[str, Site]) -> dict[str, Maskable]:
    """The weights of linear, (transposed) convolutional, recurrent and embedding layers that are real-valued sites."""
    found = {}
    for network in bayesian_modules(model) if isinstance(model, nn.Module) else []:
        for name, aliases in network.parameter_names.items():
            modules = [network.network.get_submodule(alias.rpartition(".")[0]) for alias in aliases]
            of_first, *others = (_columns(m, a.rpartition(".")[2]) for m, a in zip(modules, aliases, strict=True))
            if of_first is None or any(o is None or not torch.equal(o, of_first) for o in others):
                continue  # no matrix, or tied weights that mean different things by a column
            # Non-centered weights are products of sites; dropping a column of one drops it from all.
            suffix = ".raw" if isinstance(network.site_priors[name], HorseshoePrior) else ""
            site = sites.get(full_name(network, f"{name}{suffix}"))
            if site is not None and site.is_real:
                found[site.name] = Maskable(site, name, modules[0], network, of_first, int(of_first.max()) + 1)
    return found


def _columns(module: nn.Module, local: str) -> Tensor | None:
    """The input unit of each element of a layer's weight: of a convolution its channel, of an embedding its type."""
    weight = getattr(module, local)
    if isinstance(module, nn.RNNBase):
        return _along(weight, 1) if local.startswith("weight_") else None
    if local != "weight":
        return None
    if isinstance(module, nn.Embedding | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return _along(weight, 0)
    if isinstance(module, nn.Linear):
        return _along(weight, 1)
    if isinstance(module, _LINEAR_OR_CONV):
        groups: int = module.groups  # type: ignore[assignment]
        by_group = torch.arange(weight.shape[1] * groups).reshape(groups, 1, -1)
        by_output = by_group.expand(groups, weight.shape[0] // groups, -1).reshape(weight.shape[:2])
        return by_output.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2)).expand(weight.shape)
    return None


def _along(weight: Tensor, dim: int) -> Tensor:
    shape = [1] * weight.dim()
    shape[dim] = -1
    return torch.arange(weight.shape[dim]).reshape(shape).expand(weight.shape)


# -------------------------------------------------------------------------------------------------------- rates


def resolve_rates(maskable: Mapping[str, Maskable], p: Rates, where: str | Sequence[str] | None) -> dict[str, float]:
    """Dropout probabilities by site; sites without dropout are left out.

    Args:
        maskable: The weights there are.
        p: One probability; ordered ``(pattern, probability)``; or ``"network"``, for those of its dropout modules.
        where: Patterns of the weights that one probability is for.

    Raises:
        TypeError: If ``p`` is of another kind.
        ValueError: If a probability is not in [0, 1), a pattern matches nothing, nothing is masked, or the network's
            own dropout cannot be read.
    """
    if p == "network":
        if where is not None:
            raise ValueError("where: with p='network' the network's dropout modules say where; leave it out.")
        rates = _network_rates(maskable)
    elif isinstance(p, int | float) and not isinstance(p, bool):
        rates = _by_patterns(maskable, where, float(p))
    elif isinstance(p, Sequence) and not isinstance(p, str):
        if where is not None:
            raise ValueError("where: p names its own patterns; leave where out.")
        rates = {}
        for pattern, probability in p:
            for name, rate in _by_patterns(maskable, pattern, probability).items():
                rates.setdefault(name, rate)  # the first pattern that matches decides
    else:
        raise TypeError(f"p: expected a probability, (pattern, probability) pairs or 'network', got {p!r}.")
    rates = {name: rates[name] for name in maskable if rates.get(name, 0.0) > 0.0}
    if not rates:
        raise ValueError("p: no weight is masked, which leaves a point; name some with where, p > 0, or use MAP.")
    return rates


def _by_patterns(maskable: Mapping[str, Maskable], where: str | Sequence[str] | None, p: float) -> dict[str, float]:
    check_number("p", p, 0.0, 1.0, below=True)
    if where is None:
        return {name: p for name, weight in maskable.items() if weight.is_default}
    chosen: dict[str, float] = {}
    for pattern in [where] if isinstance(where, str) else where:
        names = [n for n, w in maskable.items() if any(fnmatch.fnmatchcase(x, pattern) for x in (n, w.parameter))]
        if not names:
            raise ValueError(
                f"where: the pattern {pattern!r} matches none of the weights that dropout can mask: "
                f"{', '.join(maskable) or 'there are none'}."
            )
        chosen |= dict.fromkeys(names, p)
    return chosen


def _network_rates(maskable: Mapping[str, Maskable]) -> dict[str, float]:
    """Each dropout module's p, for the input units of the next layer of a plain chain."""
    networks = {id(weight.network): weight.network for weight in maskable.values()}
    by_module = {id(weight.module): name for name, weight in maskable.items()}
    rates: dict[str, float] = {}
    for network in networks.values():
        pending: tuple[str, nn.Module] | None = None
        between: list[nn.Module] = []
        for name, module in _chain(network.network, ""):
            if isinstance(module, DROPOUTS):
                if pending is not None:
                    raise ValueError(f"p: the network has two dropout modules, {pending[0]!r} and {name!r}, in a row.")
                pending, between = (name, module), []
            elif pending is not None and id(module) in by_module:
                _check_commutes(pending, between, name, module)
                rates[by_module[id(module)]] = pending[1].p  # type: ignore[assignment]
                pending = None
            else:
                between.append(module)
        if pending is not None:
            raise ValueError(f"p: after the dropout module {pending[0]!r} comes no layer whose weight is a site.")
    if not rates:
        raise ValueError("p: the network has no dropout modules to read; give a probability.")
    return rates


def _chain(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers in the order they run, where the order is certain."""
    if isinstance(module, nn.Sequential):
        for child_name, child in module.named_children():
            yield from _chain(child, f"{name}.{child_name}" if name else child_name)
        return
    if not isinstance(module, DROPOUTS):
        _refuse_inner_dropout(module, name)
    yield name, module


def _refuse_inner_dropout(module: nn.Module, name: str) -> None:
    """Refuses layers that drop in their own forward pass: of which units, only their code tells."""
    names = {id(inner): ".".join(filter(None, (name, n))) or "network" for n, inner in module.named_modules()}
    for inner, attribute in dropout_rates(module):
        if not (rate := getattr(inner, attribute)):
            continue
        if isinstance(inner, DROPOUTS):
            raise ValueError(
                f"p: the dropout module {names[id(inner)]!r} inside {type(module).__name__} is not in a plain "
                "Sequential chain, so what it drops is not certain; give (pattern, probability) pairs."
            )
        raise ValueError(
            f"p: the layer {names[id(inner)]!r} ({type(inner).__name__}) has dropout={rate:g} of its own, which is no "
            "mask of the columns of one weight; give (pattern, probability) pairs, which replace the network's own "
            "dropout, or build the layer with dropout=0.0."
        )


def _check_commutes(dropout: tuple[str, nn.Module], between: list[nn.Module], name: str, layer: nn.Module) -> None:
    """Refuses where the dropout module does not drop whole input units of the layer."""
    elementwise = isinstance(dropout[1], nn.Dropout)
    by_channel = isinstance(dropout[1], nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
    convolution = isinstance(layer, _LINEAR_OR_CONV[1:] + _TRANSPOSED)
    fits: Callable[[nn.Module], bool] = lambda m: isinstance(m, _TRANSPARENT)  # noqa: E731
    if elementwise and isinstance(layer, nn.Linear):
        fits = lambda m: isinstance(m, (*_TRANSPARENT, nn.Flatten))  # noqa: E731
    if (elementwise and isinstance(layer, nn.Linear)) or (by_channel and convolution):
        odd = next((m for m in between if not fits(m)), None)
        if odd is None:
            return
        what = f"{type(odd).__name__} lies between them"
    else:
        what = "it does not drop whole input units of that layer"
    raise ValueError(
        f"p: the dropout module {dropout[0]!r} ({type(dropout[1]).__name__}) is no mask of the columns of {name!r} "
        f"({type(layer).__name__}): {what}; give (pattern, probability) pairs."
    )
