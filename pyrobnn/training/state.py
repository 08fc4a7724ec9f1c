"""Parameters, buffers and random generators of a training run: read, written back, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.finite import is_finite
from pyrobnn.core.module_state import fill
from pyrobnn.model.shared import own_state, trained_state

__all__ = [
    "Tensors",
    "became_non_finite",
    "different_tensor",
    "generators",
    "group_sizes",
    "read_tensors",
    "write_tensors",
]

Tensors = dict[str, dict[str, Tensor]]


def read_tensors(model: nn.Module, guide: nn.Module, *, only_trained: bool = False) -> Tensors:
    """Copies of all parameters and buffers, but for those that are shared with another network.

    Args:
        model: The model.
        guide: The guide.
        only_trained: Whether the weights that sites replace are left out, which no training changes: as many numbers as
            the means of a guide.
    """
    state = trained_state if only_trained else own_state
    return {
        key: {name: value.detach().clone() for name, value in state(module).items()}
        for key, module in (("model", model), ("guide", guide))
    }


def write_tensors(model: nn.Module, guide: nn.Module, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Restores what :func:`read_tensors` returned."""
    fill(model, tensors["model"])
    fill(guide, tensors["guide"])


def different_tensor(module: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """In words, the first tensor whose name, shape or dtype differs; None if there is none."""
    own = own_state(module)
    for name in {**own, **tensors}:
        if name not in tensors or name not in own:
            return f"the tensor {name!r} is {'missing' if name in own else 'not expected'}"
        was, now = (f"{tuple(t.shape)}, {t.dtype}" for t in (tensors[name], own[name]))
        if was != now:
            return f"the tensor {name!r} was {was}, but now it is {now}"
    return None


def became_non_finite(model: nn.Module, guide: nn.Module, before: Tensors) -> list[str]:
    """Names of tensors that were finite ``before`` and are not now (a mask may hold infinities)."""
    return [
        f"{key}.{name}"
        for key, module in (("guide", guide), ("model", model))
        for name, value in trained_state(module).items()
        if value.is_floating_point() and not is_finite(value) and is_finite(before[key][name])
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


def group_sizes(state: Any) -> Sequence[int]:
    """How many parameters each group of an optimizer's state dict has; none if it is not one."""
    groups = state.get("param_groups")
    if not isinstance(groups, list):
        return []
    return [len(group.get("params", ())) if isinstance(group, dict) else 0 for group in groups]
