"""Maps of conditional flows: splines given by a network's outputs, and zuko's maps with networks of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.extras import import_zuko

__all__ = ["MIN_SLOPE", "Conditioned", "LearnedFlow", "Maps", "Splines"]

MIN_SLOPE = 1e-3
"""Smallest derivative of a spline, zuko's own choice."""


class LearnedFlow(nn.Module):
    """Maps with networks of their own, which start as the identity, after a location and scale of each target."""

    def __init__(self, transform: nn.Module, num_targets: int) -> None:
        super().__init__()
        self.maps = Maps(transform)
        self.loc = nn.Parameter(torch.zeros(num_targets))
        self.log_scale = nn.Parameter(torch.zeros(num_targets))
        self.maps.start_as_identity()

    def is_normal(self) -> bool:
        """Whether the maps are still the identity."""
        return all(not bool(layer.weight.any() or layer.bias.any()) for layer in self.maps.last_layers())


class Maps(nn.Module):
    """A conditional map: that of a context, or all of what it does to ``x`` in one call."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def last_layers(self) -> list[Any]:
        """Of each network."""
        return [list(module)[-1] for module in self.transform.modules() if isinstance(module, nn.Sequential)]

    def start_as_identity(self) -> None:
        """Sets what decides of the maps to zero."""
        for layer in self.last_layers():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, context: Tensor | None, x: Tensor | None, inverse: bool) -> Any:
        """The map of the context, its value and log determinant at ``x``, or its inverse there."""
        given = self.transform(context)
        if x is None:
            return given
        return given.inv(x) if inverse else given.call_and_ladj(x)


class Conditioned:
    """Maps with learned weights, given a context in whose precision they are computed."""

    def __init__(self, maps: nn.Module, context: Tensor, num_targets: int) -> None:
        self.maps, self.context = maps, context
        # The networks of a single target see nothing but the context, so that they run once.
        self._single: Any = self._run(None, False) if num_targets == 1 else None

    def _run(self, x: Tensor | None, inverse: bool) -> Any:
        dtype = self.context.dtype
        with torch.autocast(self.context.device.type, enabled=False):
            tensors = dict(self.maps.named_parameters())
            if all(value.dtype == dtype for value in tensors.values()):
                return self.maps(self.context, x, inverse)
            cast = {name: value.to(dtype) for name, value in tensors.items()}
            return torch.func.functional_call(self.maps, cast, (self.context, x, inverse))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values, and log determinants of the derivative."""
        found: tuple[Tensor, Tensor] = self._single.call_and_ladj(x) if self._single else self._run(x, False)
        return found

    def inverse(self, z: Tensor) -> Tensor:
        """Where the values are ``z``."""
        found: Tensor = self._single.inv(z) if self._single else self._run(z, True)
        return found


class Splines:
    """Monotonic splines of one target, whose parameters are given ``[*batch, T (3 bins - 1)]``."""

    def __init__(self, raw: Tensor, count: int, bins: int) -> None:
        kind = import_zuko("ConditionalFlow").transforms.MonotonicRQSTransform
        sizes = [bins, bins, bins - 1]
        each = raw.unflatten(-1, (count, sum(sizes))).unsqueeze(-3)  # a dimension for the target
        self.each = [kind(*each[..., i, :].split(sizes, -1), slope=MIN_SLOPE) for i in range(count)]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values, and log determinants of the derivative."""
        total: Tensor | float = 0.0
        for spline in self.each:
            x, ladj = spline.call_and_ladj(x)
            total = total + ladj
        return x, torch.as_tensor(total).sum(-1)

    def inverse(self, z: Tensor) -> Tensor:
        """Where the values are ``z``."""
        for spline in reversed(self.each):
            z = spline.inv(z)
        return z
