"""describe() of a checkpoint, by its specification alone: no network is needed, and no tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyrobnn.reporting.description import Description, new_row

__all__ = ["describe_specification"]


def describe_specification(spec: Mapping[str, Any]) -> Description:
    """The table of :func:`~pyrobnn.describe` as far as a specification says it.

    Args:
        spec: What :func:`pyrobnn.checkpoint.specification` returns.

    Returns:
        The table. The column ``posterior`` names the guide's class, since the families of its factors are not written
        down; the one of the KL is empty.
    """
    model, guide = spec["model"], spec["guide"]
    sites = dict(guide["sites"])
    frozen = {name.removeprefix("net.net.") for name in model["frozen"]}
    rows = []
    for name, parameter in model.get("network", {"parameters": {}})["parameters"].items():
        prior = model["priors"].get(name)
        site = f"net.{name}"
        status = "random" if prior is not None else "frozen" if name in frozen else "deterministic"
        row = new_row(name, None, parameter["shape"], prior and prior["summary"], status)
        rows.append(row | {"tied": list(parameter["tied"])})
        if sites.pop(site, None) is not None:
            rows[-1] |= {"site": site, "posterior": guide["class"]}
    for site, found in sites.items():
        rows.append(new_row(None, site, found["shape"], found["prior"], "random") | {"posterior": guide["class"]})
    return Description(rows, [*_notes(spec)])


def _notes(spec: Mapping[str, Any]) -> list[str]:
    model, guide, versions = spec["model"], spec["guide"], spec["versions"]
    notes = [f"model: {model['class']}"]
    if "num_data" in model:
        notes[0] += f", fitted to {model['num_data']:,} data"
    if "likelihood" in model:
        notes.append(f"likelihood: {model['likelihood']['class']}{_options(model['likelihood']['config'])}")
    notes.append(f"posterior: {guide['class']}{_options(guide['config'])}")
    notes.append(f"tensors: {spec['tensors']['bytes']:,} bytes")
    return [*notes, "saved with " + ", ".join(f"{name} {version}" for name, version in versions.items())]


def _options(config: Mapping[str, Any]) -> str:
    """Options that were stated, in parentheses."""
    stated = [f"{name}={value!r}" for name, value in config.items() if value is not None and not _is_long(value)]
    return f"({', '.join(stated)})" if stated else ""


def _is_long(value: Any) -> bool:
    return isinstance(value, dict | list) and len(repr(value)) > 60
