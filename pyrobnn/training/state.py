"""Parameters, buffers and random generators of a training run: read, written back, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Tensors", "became_non_finite", "generators", "read_tensors", "write_tensors"]

Tensors = dict[str, dict[str, Tensor]]


def read_tensors(model: nn.Module, guide: nn.Module) -> Tensors:
    """Copies of all parameters and buffers."""
    return {
        key: {name: value.detach().clone() for name, value in module.state_dict().items()}
        for key, module in (("model", model), ("guide", guide))
    }


def write_tensors(model: nn.Module, guide: nn.Module, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Restores what :func:`read_tensors` returned."""
    model.load_state_dict(tensors["model"])
    guide.load_state_dict(tensors["guide"])


def became_non_finite(model: nn.Module, guide: nn.Module, before: Tensors) -> list[str]:
    """Names of tensors that were finite ``before`` and are not now (a mask may hold infinities)."""
    return [
        f"{key}.{name}"
        for key, module in (("guide", guide), ("model", model))
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not bool(value.isfinite().all()) and bool(before[key][name].isfinite().all())
    ]


def generators(*loaders: Any) -> list[torch.Generator]:
    """The random generators of loaders and their samplers."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        for owner in (loader, getattr(loader, "sampler", None), sampler):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
    return list(found.values())
