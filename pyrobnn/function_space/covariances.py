r"""Second moments of a hidden layer of infinitely many units, and what linear layers make of them.

The units of a layer are exchangeable, so one covariance function describes it: between inputs ``x`` and ``x'``, and, in
a convolutional layer, between positions ``p`` and ``p'``. Weights of variance :math:`s^2` on :math:`n` units, biases of
variance :math:`s_b^2`, a window :math:`\Delta`:

.. math::  K'_{pp'}(x, x') = s_b^2 + n s^2 \sum_{\delta \in \Delta} K_{p+\delta,\,p'+\delta}(x, x')

(Lee et al. 2018; Novak et al. 2019). Without pooling only :math:`p = p'` is needed; with average pooling all pairs are,
and cost grows with the square of the number of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.function_space.dual import DualActivation

__all__ = ["CONVOLUTIONS", "Hidden", "activated", "convolved", "flattened", "pooled", "summed", "weighted"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Hidden:
    """A layer's second moments per unit, each ``[*pairs]``, ``[*pairs, *positions]`` or, for all pairs, twice that.

    Attributes:
        moments: Of x1 with x2, of x1 with itself, and of x2 with itself (the last two input by input).
        tangents: The neural tangent kernel in the same form; None if it is not asked for.
        paired: Whether x1 and x2 are compared row by row instead of each with each.
        positions: Number of spatial dimensions; 0 for vectors.
        all_pairs: Whether pairs of different positions are kept.
        is_gaussian: Whether the units are Gaussian: sums over the units of a layer before, not yet an activation.
        sources: Names of the weight layers whose units were added up.
        flat: Whether positions count as units from here on.
    """

    moments: tuple[Tensor, Tensor, Tensor]
    tangents: tuple[Tensor, Tensor, Tensor] | None
    paired: bool
    positions: int = 0
    all_pairs: bool = False
    is_gaussian: bool = False
    sources: frozenset[str] = frozenset()
    flat: bool = False

    def variances(self) -> tuple[Tensor, Tensor]:
        """At each input and position of x1 and x2, shaped to broadcast with the first of the moments."""
        first, second = self.moments[1], self.moments[2]
        if self.all_pairs:
            first, second = _own(first, self.positions), _own(second, self.positions)
        if not self.paired:
            first, second = first.unsqueeze(1), second.unsqueeze(0)
        return self._left(first), self._right(second)

    def own_variances(self, which: int) -> tuple[Tensor, Tensor]:
        """Variances to broadcast with ``moments[which]``, of one input each."""
        values = self.moments[which]
        if self.all_pairs:
            values = _own(values, self.positions)
        return self._left(values), self._right(values)

    def mapped(self, function: Callable[[Tensor], Tensor], **changes: object) -> Hidden:
        """With a linear map of every covariance."""
        first, second, third = self.moments
        tangents = None
        if self.tangents is not None:
            one, two, three = self.tangents
            tangents = function(one), function(two), function(three)
        return replace(self, moments=(function(first), function(second), function(third)), tangents=tangents, **changes)  # type: ignore[arg-type]

    def _left(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape, *(1,) * self.positions) if self.all_pairs else values

    def _right(self, values: Tensor) -> Tensor:
        if not self.all_pairs:
            return values
        shape = values.shape
        lead = shape[: len(shape) - self.positions]
        return values.reshape(*lead, *(1,) * self.positions, *shape[len(lead) :])


def weighted(hidden: Hidden, gain: Tensor, bias: Tensor, source: str) -> Hidden:
    """After a layer of fresh weights: ``bias + gain · K``; the tangent kernel gains what these weights contribute."""
    found = hidden.mapped(lambda k: gain * k)
    moments = tuple(bias + k for k in found.moments)
    tangents = None
    if found.tangents is not None:
        tangents = tuple(k + t for k, t in zip(moments, found.tangents, strict=True))
    return replace(found, moments=moments, tangents=tangents, is_gaussian=True, sources=frozenset([source]), flat=False)  # type: ignore[arg-type]


def activated(hidden: Hidden, dual: DualActivation) -> Hidden:
    """After an elementwise function of Gaussian units."""
    pairs = [hidden.variances(), hidden.own_variances(1), hidden.own_variances(2)]
    moments, slopes = [], []
    for which, (k, (left, right)) in enumerate(zip(hidden.moments, pairs, strict=True)):
        own = which > 0 and not hidden.all_pairs
        moments.append(dual.square(k) if own else dual.product(k, left, right))
        if hidden.tangents is not None:
            slopes.append(dual.derivative_square(k) if own else dual.derivative_product(k, left, right))
    tangents = None
    if hidden.tangents is not None:
        tangents = tuple(t * slope for t, slope in zip(hidden.tangents, slopes, strict=True))
    return replace(hidden, moments=tuple(moments), tangents=tangents, is_gaussian=False, sources=frozenset())  # type: ignore[arg-type]


def convolved(hidden: Hidden, layer: nn.Module) -> Hidden:
    """Sums over the window of a convolution; the weights' variance comes after (:func:`weighted`)."""
    assert isinstance(layer, CONVOLUTIONS)
    if not hidden.all_pairs:
        return hidden.mapped(lambda k: _window_sums(k, layer))
    return hidden.mapped(lambda k: _paired_window_sums(k, layer))


def pooled(hidden: Hidden, layer: Callable[[Tensor], Tensor]) -> Hidden:
    """After averages over windows, for all pairs of positions: the average is linear in either position."""
    return hidden.mapped(lambda k: _on_both(k, hidden.positions, layer))


def flattened(hidden: Hidden) -> Hidden:
    """Where positions become units: the mean over positions, each with itself."""
    d = hidden.positions
    if hidden.all_pairs:
        hidden = hidden.mapped(lambda k: _own(k, d))
    return hidden.mapped(lambda k: k.flatten(-d).mean(-1), positions=0, all_pairs=False, flat=False)


def summed(first: Hidden, second: Hidden) -> Hidden:
    """The sum of two independent layers of the same width."""
    moments = tuple(a + b for a, b in zip(first.moments, second.moments, strict=True))
    tangents = None
    if first.tangents is not None and second.tangents is not None:
        tangents = tuple(a + b for a, b in zip(first.tangents, second.tangents, strict=True))
    return replace(first, moments=moments, tangents=tangents, sources=first.sources | second.sources)  # type: ignore[arg-type]


def _own(values: Tensor, positions: int) -> Tensor:
    """``K_pp`` of ``K_pp'``."""
    shape = values.shape[values.dim() - positions :]
    count = shape.numel()
    lead = values.shape[: values.dim() - 2 * positions]
    return values.reshape(*lead, count, count).diagonal(dim1=-2, dim2=-1).reshape(*lead, *shape)


def _window_sums(values: Tensor, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    d = len(layer.kernel_size)
    lead = values.shape[: values.dim() - d]
    convolution = (F.conv1d, F.conv2d, F.conv3d)[d - 1]
    ones = values.new_ones(1, 1, *layer.kernel_size)
    flat = values.reshape(-1, 1, *values.shape[len(lead) :])
    found = convolution(flat, ones, None, layer.stride, layer.padding, layer.dilation)
    return found.reshape(*lead, *found.shape[2:])


def _paired_window_sums(values: Tensor, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    """The window moves over both positions at once: one shifted copy for each of its places."""
    d = len(layer.kernel_size)
    pads = _pads(layer)
    padded = F.pad(values, [n for pad in reversed(pads) for n in pad] * 2)
    sizes = padded.shape[-d:]
    reach = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    total: Tensor | None = None
    for place in torch.cartesian_prod(*(torch.arange(k) for k in layer.kernel_size)).reshape(-1, d).tolist():
        cut = tuple(
            slice(tap * dilation, size - span + tap * dilation + 1, stride)
            for tap, dilation, size, span, stride in zip(place, layer.dilation, sizes, reach, layer.stride, strict=True)
        )
        part = padded[(..., *cut, *cut)]  # type: ignore[index]
        total = part if total is None else total + part
    assert total is not None
    return total


def _pads(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[tuple[int, int]]:
    """Zeros before and after, by dimension."""
    if isinstance(layer.padding, tuple):
        return [(int(n), int(n)) for n in layer.padding]
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    spans = [dilation * (kernel - 1) for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    return [(span // 2, span - span // 2) for span in spans]


def _on_both(values: Tensor, positions: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
    for _ in range(2):  # on the second positions, then, with the two exchanged, on the first
        lead = values.shape[: values.dim() - positions]
        found = layer(values.reshape(-1, 1, *values.shape[len(lead) :]))
        values = found.reshape(*lead, *found.shape[2:])
        batch = values.dim() - 2 * positions
        order = [*range(batch), *range(batch + positions, values.dim()), *range(batch, batch + positions)]
        values = values.permute(order)
    return values
