"""The memory of a mean-field training step: noise in antithetic groups, values, gradients, weights that layers draw."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.estimators.base import Estimator, SharedDraw
from pyrobnn.estimators.weight import GaussianWeight, WeightMemory
from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import GradientBuffers, refuse_second_derivatives
from pyrobnn.steps.flat import chunks, collect
from pyrobnn.steps.noise import AntitheticNoise

__all__ = ["Drawn", "MeanFieldMemory"]

_SHARED = SharedDraw()
_CHUNK = 2**16  # elements that are worked on at a time where a result needs memory of its own


class MeanFieldMemory:
    """Preallocated tensors that are used by one draw at a time.

    A draw that is the same for all layers takes three vectors: the noise, and two that hold values and scales until the
    loss has been differentiated, then the gradients by means and log scales. Layers that draw need both at once.

    Args:
        layout: The sites.
        loc, log_scale: The parameters, ``[d]``.

    Attributes:
        antithetic: The noise in groups of draws.
        noise: ε.
        value: The draw ``μ + σε``, in the memory of ``by_loc``.
        scale: σ, in the memory of ``by_log_scale``; where layers draw it has memory of its own, and holds σ² once a
            layer has asked for variances.
        locs, values: Parts of the means and of the draw, by site.
        by_loc, by_log_scale: The gradients of the draw in progress.
        has_variance: Whether ``scale`` holds σ².
    """

    def __init__(self, layout: Layout, loc: nn.Parameter, log_scale: nn.Parameter) -> None:
        like = self.loc = loc.detach()
        self.layout = layout
        self.antithetic = AntitheticNoise(like)
        self.noise = self.antithetic.values
        self.locs = list(layout.split(self.loc).values())
        self.values: list[Tensor] = []
        self._buffers = GradientBuffers(loc), GradientBuffers(log_scale)
        self.by_loc = self.by_log_scale = self.scale = like  # until the first draw begins
        self._variance_slots: dict[str, Tensor] = {}
        self.has_variance = False
        self._of_layers: tuple[Tensor, Tensor] | None = None
        self._scales: dict[str, Tensor] = {}
        self._deviations: dict[str, Tensor] = {}
        self._memories: dict[str, tuple[Estimator, WeightMemory]] = {}
        self._made_for: tuple[Any, ...] = ()
        self._by_variance: dict[str, Tensor] = {}
        self._by_deviation: list[tuple[str, int, Tensor, Tensor]] = []
        self._drawn: Callable[[], Drawn | None] = lambda: None
        self._scalar, self.zero = like.new_zeros(()), like.new_zeros(())
        self._scratch = like.new_empty(min(_CHUNK, len(like)))

    @property
    def value(self) -> Tensor:
        """The draw, until it has been differentiated."""
        return self.by_loc

    def begin(self, layerwise: bool = False) -> None:
        """Starts a draw, with buffers for gradients that are not ``parameter.grad`` now."""
        by_loc, by_log_scale = map(GradientBuffers.free, self._buffers)
        if by_loc is not self.by_loc:
            self.by_loc, self.values = by_loc, list(self.layout.split(by_loc).values())
            self._made_for = ()
        if by_log_scale is not self.by_log_scale:
            self.by_log_scale, self._variance_slots = by_log_scale, self.layout.split(by_log_scale)
            self._made_for = ()
        if layerwise and self._of_layers is None:
            scale, deviation = self._of_layers = torch.empty_like(self.noise), torch.empty_like(self.noise)
            self._scales, self._deviations = self.layout.split(scale), self.layout.split(deviation)
        self.scale = self._of_layers[0] if layerwise and self._of_layers is not None else by_log_scale
        self.has_variance = False
        self._by_variance.clear()
        self._by_deviation.clear()

    def chunks(self, window: slice) -> Iterator[tuple[slice, Tensor]]:
        """Parts of a window that fit a processor's cache, each with the same memory for a result of its size."""
        for chunk in chunks(window, _CHUNK):
            yield chunk, self._scratch[: chunk.stop - chunk.start]

    def constant(self, value: float) -> Tensor:
        """A scalar tensor of the value; each call overwrites the last one's."""
        return self._scalar.fill_(value)

    def collect(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The gradients by the sites' values as one vector."""
        collect(gradients, self.values, self.by_loc)
        return self.by_loc

    # ------------------------------------------------------------------------------------- draws made by layers

    def weights_under(
        self,
        locs: Mapping[str, Tensor],
        drawn: Drawn,
        estimators: Mapping[str, Estimator],
        antithetic: bool,
    ) -> dict[str, GaussianWeight]:
        """The sites' distributions, as layers receive them.

        Variances and deviations that layers use are outputs of nodes that take the token of the draw as input, so that
        the backward pass of the draw's node runs after theirs.
        """
        self._drawn = weakref.ref(drawn)  # this memory must not keep the graph alive
        if self._made_for != (estimators, antithetic):
            for position, name in enumerate(self.layout):
                by = estimators.get(name, _SHARED)
                self._memories[name] = by, self._memory_of(name, position, antithetic and by.shares_noise)
            self._made_for = estimators, antithetic
        return {
            name: GaussianWeight.of(locs[name], self._scales[name], by, memory)
            for name, (by, memory) in self._memories.items()
        }

    def _memory_of(self, name: str, position: int, shares: bool) -> WeightMemory:
        return WeightMemory(
            self._deviations[name],
            self.values[position],
            self._variance_slots[name],
            partial(self._variance_of, name),
            lambda: self.has_variance,
            partial(self._attached, name),
            partial(self._deviation_of, name) if shares else None,
        )

    def collect_variances(self) -> None:
        """Copies gradients with respect to variances to where those with respect to log scales are computed."""
        if not self.has_variance:
            return
        for name, slot in self._variance_slots.items():
            gradient = self._by_variance.get(name)
            if gradient is None:
                slot.zero_()
            elif gradient.data_ptr() != slot.data_ptr():
                slot.copy_(gradient)

    def add_deviations(self) -> None:
        """Adds what the layers' deviations ``δ = σε`` give to the gradient by log σ, ``δ dL/dδ``."""
        for name, count, deviation, gradient in self._by_deviation:
            pairs = zip(gradient, deviation, strict=True) if count else [(gradient, deviation)]
            for pair in pairs:  # without memory for the products
                self._variance_slots[name].addcmul_(*pair)

    def _deviation_of(self, name: str) -> Tensor:
        """A site's part of the draw's deviations in the graph; all are made when a layer first asks for one."""
        drawn = self._current_draw()
        if not drawn.deviations:
            self.antithetic.refresh(True)
            with torch.no_grad():
                scale = self.scale.sqrt() if self.has_variance else self.scale
                assert self._of_layers is not None
                torch.mul(self.noise, scale, out=self._of_layers[1])
            drawn.deviations = self._attach_all(drawn, self._deviations, self._receive_deviation)
        return drawn.deviations[name]

    def _variance_of(self, name: str) -> Tensor:
        """A site's variances in the graph; at the first use all take the memory of the standard deviations."""
        drawn = self._current_draw()
        if not self.has_variance:
            with torch.no_grad():
                self.scale.square_()
            self.has_variance = True
            drawn.variances = self._attach_all(drawn, self._scales, self._by_variance.__setitem__)
        return drawn.variances[name]

    def _attached(self, name: str, value: Tensor, count: int) -> Tensor:
        """Deviations of one site, ``count`` of them, in the graph."""

        def receive(_: str, gradient: Tensor) -> None:
            self._by_deviation.append((name, count, value, gradient))

        return _Attached.apply(self._current_draw().token, [name], receive, value)[0]

    def _receive_deviation(self, name: str, gradient: Tensor) -> None:
        self._by_deviation.append((name, 0, self._deviations[name], gradient))

    def _attach_all(
        self, drawn: Drawn, values: Mapping[str, Tensor], receive: Callable[[str, Tensor], None]
    ) -> dict[str, Tensor]:
        """Tensors of all sites in the graph of the draw; their gradients go to ``receive``."""
        attached = _Attached.apply(drawn.token, list(values), receive, *values.values())
        return dict(zip(values, attached, strict=True))

    def _current_draw(self) -> Drawn:
        drawn = self._drawn()
        assert drawn is not None, "the draw of this memory no longer exists"
        return drawn


@dataclass
class Drawn:
    """The tensors of a draw that are in its graph: the token, and what layers share.

    Attributes:
        record: State for the divergence and the backward pass of the draw; the node holds it, too.
        token: The zero that the KL's value is added to.
        variances, deviations: Of all sites, once a layer has asked for one.
    """

    record: Any
    token: Tensor
    variances: dict[str, Tensor] = field(default_factory=dict)
    deviations: dict[str, Tensor] = field(default_factory=dict)


class _Attached(torch.autograd.Function):
    """Tensors in the graph whose gradients are received by name before the token's node is differentiated."""

    @staticmethod
    def forward(
        ctx: Any, token: Tensor, names: list[str], receive: Callable[[str, Tensor], None], *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.names, ctx.receive = names, receive
        ctx.set_materialize_grads(False)
        return tuple([value.detach() for value in values])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        refuse_second_derivatives()
        for name, gradient in zip(ctx.names, gradients, strict=True):
            if gradient is not None:
                ctx.receive(name, gradient)
        return (None,) * (3 + len(gradients))
