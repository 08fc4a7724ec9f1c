"""The memory of a mean-field training step: noise in antithetic groups, values, gradients, weights that layers draw."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyrobnn.estimators.base import Estimator, SharedDraw
from pyrobnn.estimators.weight import GaussianWeight, WeightMemory
from pyrobnn.layout import Layout
from pyrobnn.steps.base import GradientBuffers

__all__ = ["MeanFieldMemory"]

_SHARED = SharedDraw()
_GROUP = 8  # training draws that share one block of random numbers


class MeanFieldMemory:
    """What one draw after another uses.

    Args:
        layout: The sites.
        loc, log_scale: The parameters, ``[d]``.

    Attributes:
        noise, scale, value: ε, σ and the draw ``μ + σε``; σ gives way to σ² where layers draw by variances.
        locs, values: Parts of the means and of the draw, by site.
        by_loc, by_log_scale: The gradients of the draw in progress.
        has_variance: Whether variances have taken the memory of σ.
        turn: Position of the coming draw in its antithetic group.
        generation: Number of draws made here.
    """

    def __init__(self, layout: Layout, loc: nn.Parameter, log_scale: nn.Parameter) -> None:
        like = self.loc = loc.detach()
        self.layout = layout
        self.noise, self.scale, self.value = (torch.empty_like(like) for _ in range(3))
        self.locs, self.values = list(layout.split(self.loc).values()), list(layout.split(self.value).values())
        self._buffers = GradientBuffers(loc), GradientBuffers(log_scale)
        self.by_loc = self.by_log_scale = like  # until the first draw begins
        self._slots: list[Tensor] = []
        self._variance_slots: dict[str, Tensor] = {}
        self.has_variance = self._has_noise = False
        self.turn = 0
        self._quarters = self.noise.tensor_split(4)
        self._noises, self._scales = layout.split(self.noise), layout.split(self.scale)
        self._deviations = layout.split(self.value)
        self._memories: dict[str, tuple[Estimator, WeightMemory]] = {}
        self._made_for: tuple[Any, ...] = ()
        self._by_variance: dict[str, Tensor] = {}
        self._token: Callable[[], Tensor | None] = lambda: None
        self.generation = 0

    def begin(self) -> None:
        """A draw begins: gradients go where no parameter's gradient lies."""
        by_loc, by_log_scale = (buffers.free() for buffers in self._buffers)
        if by_loc is not self.by_loc:
            self.by_loc, self._slots = by_loc, list(self.layout.split(by_loc).values())
            self._made_for = ()
        if by_log_scale is not self.by_log_scale:
            self.by_log_scale, self._variance_slots = by_log_scale, self.layout.split(by_log_scale)
            self._made_for = ()
        self.has_variance = self._has_noise = False
        self._by_variance.clear()
        self.generation += 1

    def refresh_noise(self, antithetic: bool, noise: Tensor | None = None) -> None:
        """The noise of the next draw: given, new, or the last one with other signs at a tenth of the cost."""
        if noise is not None:
            self.noise.copy_(noise)
            self.turn = 0
            return
        if self.turn == 0:
            self.noise.normal_()
        elif self.turn % 2:
            self.noise.neg_()
        else:
            for quarter in (0, 2) if self.turn == 4 else (0, 1):
                self._quarters[quarter].neg_()
        self.turn = (self.turn + 1) % _GROUP if antithetic else 0

    def collect(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The gradients by the sites' values as one vector; a site the loss does not depend on counts zero."""
        moved = []
        for gradient, slot in zip(gradients, self._slots, strict=True):
            if gradient is None or gradient.data_ptr() != slot.data_ptr():
                moved.append((slot, torch.zeros_like(slot) if gradient is None else gradient))
        if len(moved) == len(self._slots):
            torch.cat([part.reshape(-1) for _, part in moved], out=self.by_loc)
        else:
            for slot, part in moved:
                slot.copy_(part)
        return self.by_loc

    # ------------------------------------------------------------------------------------- draws made by layers

    def weights_under(
        self,
        locs: Mapping[str, Tensor],
        token: Tensor,
        estimators: Mapping[str, Estimator],
        antithetic: bool,
        noise: Tensor | None,
    ) -> dict[str, GaussianWeight]:
        """The sites' distributions, whose means and standard deviations lie in this memory.

        What layers make of the standard deviations hangs on the node's ``token``, so that the node's backward pass
        comes after theirs.
        """
        self._token = weakref.ref(token)  # whoever holds the graph holds the lease of this memory
        if noise is not None:
            self.refresh_noise(antithetic, noise)
            self._has_noise = True
        if self._made_for != (estimators, antithetic, noise is None):
            for position, site in enumerate(self.layout.values()):
                name, by = site.name, estimators.get(site.name, _SHARED)
                shares = (by.shares_noise and antithetic) or noise is not None
                self._memories[name] = (
                    by,
                    WeightMemory(
                        self._deviations[name],
                        self._slots[position],
                        self._variance_slots[name],
                        partial(self._variance_of, name),
                        lambda: self.has_variance,
                        self._attached,
                        partial(self._noise_of, name, antithetic) if shares else None,
                    ),
                )
            self._made_for = estimators, antithetic, noise is None
        return {
            name: GaussianWeight.of(locs[name], self._scales[name], by, memory)
            for name, (by, memory) in self._memories.items()
        }

    def collect_variances(self) -> None:
        """Puts the gradients by variances where those by log scales are made."""
        if not self.has_variance:
            return
        for name, slot in self._variance_slots.items():
            gradient = self._by_variance.get(name)
            if gradient is None:
                slot.zero_()
            elif gradient.data_ptr() != slot.data_ptr():
                slot.copy_(gradient)

    def add_deviations(self, weights: Mapping[str, GaussianWeight]) -> None:
        """Adds what the layers' deviations ``σε`` give to the gradient by log σ."""
        for name, weight in weights.items():
            weight.add_gradient_by_log_scale(self._variance_slots[name])

    def _noise_of(self, name: str, antithetic: bool) -> Tensor:
        """A site's part of the draw's noise, which is made when a layer first asks for it."""
        if not self._has_noise:
            self.refresh_noise(antithetic)
            self._has_noise = True
        return self._noises[name]

    def _variance_of(self, name: str) -> Tensor:
        """A site's variances in the graph; when one first asks, all take the memory of the standard deviations."""
        if not self.has_variance:
            with torch.no_grad():
                self.scale.square_()
            self.has_variance = True
        return self._attached(self._scales[name], partial(self._by_variance.__setitem__, name))

    def _attached(self, value: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        token = self._token()
        assert token is not None, "the draw is not alive"
        return _Attached.apply(token, value, receive)


class _Attached(torch.autograd.Function):
    """A tensor in the graph whose gradient is handed to ``receive`` before the node of ``token`` is differentiated."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, value: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        ctx.receive = receive
        ctx.set_materialize_grads(False)
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[None, None, None]:
        if gradient is not None:
            ctx.receive(gradient)
        return None, None, None
