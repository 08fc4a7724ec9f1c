"""What model and guide consist of, as tables to store and compare: names, shapes, dtypes, ties, what is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyrobnn.model.bayesianize import bayesian_modules
from pyrobnn.model.layout import Layout
from pyrobnn.model.shared import shared_parameters
from pyrobnn.reporting.description import family

__all__ = [
    "Table",
    "as_table",
    "differences",
    "fingerprint",
    "freeze",
    "frozen_parameters",
    "refuse_differences",
    "saved_state",
    "shape_and_dtype",
    "site_table",
]

Table = Mapping[str, Mapping[str, Any]]
"""``{name: {property: value}}``."""


def fingerprint(net: nn.Module) -> dict[str, Any]:
    """What makes networks interchangeable: names, shapes and dtypes, tied names, the modules' classes.

    Raises:
        ValueError: If a parameter is lazy and has no shape yet.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"net: the parameter {name!r} is lazy; run one batch through the network first.")
        names.setdefault(id(parameter), []).append(name)
    tied = {first: {"tied": others} for first, *others in names.values()}
    persistent = net.state_dict(keep_vars=True)
    return {
        "modules": {name: type(module).__name__ for name, module in net.named_modules()},
        "parameters": {name: shape_and_dtype(p) | tied[name] for name, p in net.named_parameters()},
        "buffers": {name: shape_and_dtype(b) for name, b in net.named_buffers() if name in persistent},
    }


def shape_and_dtype(tensor: Tensor) -> dict[str, Any]:
    """Of one tensor."""
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def site_table(layout: Layout) -> dict[str, dict[str, Any]]:
    """Shapes, place in the flat vector and family of the prior, by site."""
    return {
        site.name: {
            "shape": list(site.shape),
            "unconstrained_shape": list(site.unconstrained_shape),
            "offset": site.offset,
            "prior": family(site.prior),
        }
        for site in layout.values()
    }


def saved_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers; tied ones once, placeholders and shared parameters not at all.

    Raises:
        TypeError: If an entry of the state is no tensor.
        ValueError: If a shared parameter is not frozen any more.
    """
    seen = _placeholders(module) | {id(parameter) for parameter in shared_parameters(module).values()}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state {name!r}: expected a tensor, got {type(tensor).__name__}; keep it in a buffer.")
        if id(tensor) not in seen:
            state[name] = tensor
            seen.add(id(tensor))
    return state


def _placeholders(module: nn.Module) -> set[int]:
    return {id(m.network.get_parameter(name)) for m in bayesian_modules(module) for name in m.parameter_names}


def frozen_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that are not trained; placeholders of random weights do not count."""
    placeholders = _placeholders(module)
    return [n for n, p in module.named_parameters() if not p.requires_grad and id(p) not in placeholders]


def freeze(module: nn.Module, frozen: list[str]) -> None:
    """Freezes the parameters of these names and thaws all others, but placeholders of random weights."""
    placeholders = _placeholders(module)
    for name, parameter in module.named_parameters():
        if id(parameter) not in placeholders:
            parameter.requires_grad_(name not in frozen)


def as_table(classes: Mapping[str, str]) -> Table:
    """Classes by name as a table."""
    return {name: {"class": kind} for name, kind in classes.items()}


def differences(kind: str, saved: Table, given: Table) -> list[str]:
    """How two tables ``{name: {property: value}}`` differ, in words."""
    words = [f"the {kind} {name!r} is missing" for name in saved if name not in given]
    words += [f"the {kind} {name!r} is not expected" for name in given if name not in saved]
    for name in (name for name in saved if name in given):
        for key, value in saved[name].items():
            if given[name].get(key) != value:
                words.append(f"the {kind} {name!r} has {key} {given[name].get(key)}, expected {value}")
    return words


def refuse_differences(argument: str, verdict: str, differences: list[str], remedy: str) -> None:
    """Raises ValueError with the first five differences, if there are any.

    Args:
        argument: The argument that is refused.
        verdict: What is wrong with it.
        differences: What :func:`differences` found.
        remedy: How to mend it.

    Raises:
        ValueError: If there are differences.
    """
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(f"{argument}: {verdict}: {'; '.join(differences[:5])}{more}. {remedy}")
