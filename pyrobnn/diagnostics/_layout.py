"""What a run of the model shows: its sites, their shapes, and names for their dimensions."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrobnn.core.pyro_compat import full_name
from pyrobnn.diagnostics._batches import Piece
from pyrobnn.diagnostics._draws import check_sites, data_sites
from pyrobnn.model.bayesianize import bayesian_modules
from pyrobnn.model.substitution import SubstituteMessenger, unscaled_score

__all__ = ["Layout", "Variable", "matching", "to_numpy"]


@dataclass(frozen=True)
class Variable:
    """One variable of a group: its dimensions without chain and draw, and the names of what lies along some."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Layout:
    """Sites, shapes and dimension names, from one run of the model on the first batch."""

    def __init__(self, model: Any, values: dict[str, Tensor], pieces: list[Piece]) -> None:
        self.values = values
        with SubstituteMessenger(values) as run:
            model(*pieces[0].args, **pieces[0].kwargs)
        check_sites(model, values, run)
        last = pieces[-1].rows
        rows = last.stop if isinstance(last, slice) else None
        self.latent = {m["name"]: m for m in run.latent if m["name"] in values}
        self.has_targets = bool(data_sites(run.observed))
        # Without targets the model draws them: then they are the latent sites that the posterior has
        # nothing of.
        predicted = data_sites(run.observed) or [m for m in run.latent if m["name"] not in values]
        self.predicted = {m["name"]: m for m in predicted}
        self._rows = rows
        self._layers = _layer_dims(model)
        self._labels = _labels(model)
        self._taken = {*self.latent, *self.predicted}

    def variables(self, group: str, sites: Sequence[str] | None) -> dict[str, Variable]:
        """The variables of ``group``."""
        if group in ("posterior", "prior"):
            return {name: self._variable(self.latent[name]) for name in matching(list(self.latent), sites)}
        return {name: self._variable(m, group == "log_likelihood") for name, m in self.predicted.items()}

    def _variable(self, message: Any, is_log_likelihood: bool = False) -> Variable:
        name, value, batch_dims = message["name"], message["value"], len(message["fn"].batch_shape)
        array = unscaled_score(message) if is_log_likelihood else value
        shape = list(array.shape)
        if message["name"] in self.predicted and self._rows is not None:
            shape[0] = self._rows
        plates = {frame.dim: frame.name for frame in message["cond_indep_stack"] if frame.vectorized}
        dims = [plates.get(i - batch_dims, f"{name}_dim_{i}") for i in range(batch_dims)]
        dims += [f"{name}_dim_{i}" for i in range(batch_dims, len(shape))]
        layer = self._layers.get(name, ())
        if len(layer) == len(shape):
            dims = list(layer)
        dims = [f"{dim}_index" if dim in self._taken else dim for dim in dims]  # a variable may not share its name
        labels = dict(zip(dims, self._labels[name], strict=True)) if name in self._labels and layer else {}
        return Variable(tuple(dims), tuple(shape), to_numpy(array[:0] if array.dim() else array).dtype, labels)


def _layer_dims(model: Any) -> dict[str, tuple[str, ...]]:
    """Dimension names of the weights whose layer defines its dimensions."""
    dims: dict[str, tuple[str, ...]] = {}
    for converted in bayesian_modules(model) if isinstance(model, nn.Module) else []:
        modules = dict(converted.network.named_modules())
        for site in converted.parameter_names:
            layer_name, _, parameter = site.rpartition(".")
            suffixes = _suffixes(modules[layer_name], parameter)
            prefix = full_name(converted, site).removesuffix(parameter)
            names = tuple(prefix + suffix for suffix in suffixes)
            for site_name in (site, f"{site}.raw", f"{site}.local_scale"):
                dims[full_name(converted, site_name)] = names
    return dims


def _labels(model: Any) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Names of what lies along the dimensions of a site, for modules with an attribute ``dimensions``."""
    found: dict[str, tuple[tuple[str, ...], ...]] = {}
    for converted in bayesian_modules(model) if isinstance(model, nn.Module) else []:
        modules = dict(converted.network.named_modules())
        for site in converted.parameter_names:
            layer_name, _, parameter = site.rpartition(".")
            declared = getattr(modules[layer_name], "dimensions", {})
            if parameter in declared:
                found[full_name(converted, site)] = tuple(labels for _, labels in declared[parameter])
    return found


def _suffixes(layer: nn.Module, parameter: str) -> tuple[str, ...]:
    kernel = ("depth", "height", "width")
    if isinstance(layer, nn.Linear):
        names: tuple[str, ...] = ("out", "in")
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        names = ("out", "in", *kernel[-len(layer.kernel_size) :])
    elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        out = "out" if layer.groups == 1 else "group_out"  # its second dimension is one group's, the bias has all
        names = ("in", out, *kernel[-len(layer.kernel_size) :])
    elif isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        names = ("token", "feature")
    else:
        return tuple(name for name, _ in getattr(layer, "dimensions", {}).get(parameter, ()))
    return {"weight": names, "bias": ("out",)}.get(parameter, ())


def matching(names: list[str], patterns: Sequence[str] | None) -> list[str]:
    """The names that match one of the patterns, all without patterns; one that matches nothing is refused."""
    if patterns is None:
        return names
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"sites: {pattern!r} matches no latent site; there are {', '.join(names[:12])}.")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def to_numpy(value: Tensor) -> np.ndarray:
    """The values on the CPU; half precision, which netCDF does not have, in 32 bits."""
    value = value.detach().cpu()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
