"""A Gaussian weight that is drawn in the layer that uses it.

Under an estimator the model receives not a drawn weight but a :class:`GaussianWeight`. Linear and convolution layers
that receive one dispatch (by torch's ``__torch_function__`` protocol) to the estimator, which draws outputs, signs or
one weight per example; any other operation gets one ordinary draw, the same for the whole step. Uses of one weight in
one run of the model must go together (:mod:`pyrobnn.estimators.uses`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.estimators.uses import SHARED, Uses

__all__ = ["GaussianWeight", "Layer", "LayerRule", "WeightMemory"]


@dataclass(frozen=True)
class WeightMemory:
    """Memory of a weight in a training step; all of the weight's shape.

    Attributes:
        deviation: Memory for the one deviation of the step.
        by_loc: Memory for the gradient of the loss with respect to the means.
        by_variance: Memory for the gradient with respect to the variances.
        variance: Returns the variances, in the graph. They overwrite the standard deviations.
        has_variance: Whether they have done so in this step.
        attach: ``attach(deviations, count)`` returns the deviations, in the graph.
        shared_deviation: If given, returns the one deviation of the step, in the graph; made for all sites at once.
    """

    deviation: Tensor
    by_loc: Tensor
    by_variance: Tensor
    variance: Callable[[], Tensor]
    has_variance: Callable[[], bool]
    attach: Callable[[Tensor, int], Tensor]
    shared_deviation: Callable[[], Tensor] | None = None


class LayerRule(Protocol):
    """How a layer that receives a :class:`GaussianWeight` draws; estimators are such rules."""

    def layer(self, layer: Layer, x: Tensor, weight: GaussianWeight, bias: Tensor | None) -> Any:
        """The layer's output ``[B, …]``, or ``NotImplemented`` for the shared draw."""
        ...


class GaussianWeight(Tensor):
    r"""The distribution :math:`N(\mu, \sigma^2)` of a weight in place of a draw.

    Attributes:
        loc: Means, with gradients.
        estimator: How layers draw.
        memory: If given, it holds :attr:`variance` and :meth:`deviations`, and receives their gradients; none flow
            through the standard deviations.
        uses: What the current run of the model did with it; None outside of runs.
    """

    loc: Tensor
    estimator: LayerRule
    memory: WeightMemory | None
    uses: Uses | None
    _scale: Tensor
    _deviations: dict[int, Tensor]
    _variance: Tensor | None
    _is_used: bool

    @staticmethod
    def of(loc: Tensor, scale: Tensor, estimator: LayerRule, memory: WeightMemory | None = None) -> GaussianWeight:
        """Wraps a mean and a standard deviation of equal shape."""
        weight = loc.detach().as_subclass(GaussianWeight)
        weight.loc, weight._scale, weight.estimator, weight.memory = loc, scale, estimator, memory
        weight._deviations, weight._variance, weight._is_used = {}, None, False
        weight.uses = None
        return weight

    @property
    def scale(self) -> Tensor:
        """``σ``."""
        return self._scale.sqrt() if self.memory is not None and self.memory.has_variance() else self._scale

    @property
    def variance(self) -> Tensor:
        """``σ²``."""
        if self._variance is None:
            self._variance = self._scale.square() if self.memory is None else self.memory.variance()
        return self._variance

    def deviations(self, count: int = 0, *, mirrored: bool = False) -> Tensor:
        """``σε``: one for the step (``count`` 0), or ``count`` of them on a new first dimension.

        Those are independent, or if ``mirrored`` the second half is the first with the other sign.
        """
        if count not in self._deviations:
            if self.memory is None:
                self._deviations[count] = self._noise(count, mirrored) * self.scale
            elif self.memory.shared_deviation is not None and not count:
                self._deviations[count] = self.memory.shared_deviation()
            else:
                with torch.no_grad():
                    value = self._noise(count, mirrored).mul_(self.scale)
                self._deviations[count] = self.memory.attach(value, count)
        return self._deviations[count]

    @property
    def shared(self) -> Tensor:
        """One draw ``μ + σε`` for the whole step."""
        self.used(*SHARED)
        return self.loc + self.deviations()

    def used(self, *how: Hashable) -> None:
        """Says how it is drawn for a call; see :class:`~pyrobnn.estimators.uses.Uses`."""
        if self.uses is not None:
            self.uses.add(how)

    def _noise(self, count: int, mirrored: bool) -> Tensor:
        noise, half = self._empty(count), count // 2
        if not mirrored or not half:
            return noise.normal_()
        noise[half:].normal_()
        torch.neg(noise[-half:], out=noise[:half])
        return noise

    def _empty(self, count: int = 0) -> Tensor:
        """Memory for deviations."""
        if self.memory is not None and not count:
            # Weights share storage, not values: `.data` has a version counter of its own.
            return self.memory.deviation.data
        shape = ((count,) if count else ()) + tuple(self._scale.shape)
        return torch.empty(shape, dtype=self._scale.dtype, device=self._scale.device)

    # ----------------------------------------------------------------------------- gradients in memory

    def take_slots(self) -> tuple[Tensor, Tensor] | None:
        """Memory for the gradients by :attr:`loc` and :attr:`variance`; None after the first call.

        The first layer that uses the weight writes its gradients there. Autograd adds the gradients of further layers.
        """
        if self.memory is None or self._is_used:
            return None
        self._is_used = True
        return self.memory.by_loc, self.memory.by_variance

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT_THE_TENSOR:
            return super().__torch_function__(func, types, args, kwargs)
        if (layer := _LAYERS.get(func)) is not None:
            result = _run_layer(layer, func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*_drawn(args), **_drawn(kwargs))


@dataclass(frozen=True)
class Layer:
    """A linear or convolution call: what an estimator needs to repeat it with other weights.

    Attributes:
        function: The function of torch.
        spatial: Number of spatial dimensions, 0 for a linear layer.
        transposed: Whether it is a transposed convolution, whose weight begins with the input channels.
        options: Its arguments after the bias.
    """

    function: Any
    spatial: int
    transposed: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, **changed: Any) -> Tensor:
        """The layer's output."""
        return self.function(x, weight, bias, **{**dict(self.options), **changed})

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return dict(self.options).get("groups", 1)


_CONV = ("stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("stride", "padding", "output_padding", "groups", "dilation")
_LAYERS: dict[Any, tuple[int, bool, tuple[str, ...]]] = {
    F.linear: (0, False, ()),
    F.conv1d: (1, False, _CONV),
    F.conv2d: (2, False, _CONV),
    F.conv3d: (3, False, _CONV),
    F.conv_transpose1d: (1, True, _CONV_TRANSPOSE),
    F.conv_transpose2d: (2, True, _CONV_TRANSPOSE),
    F.conv_transpose3d: (3, True, _CONV_TRANSPOSE),
}

_ABOUT_THE_TENSOR = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "layout", "is_cuda", "grad_fn")
} | {
    getattr(torch.Tensor, name)
    for name in ("size", "dim", "numel", "nelement", "is_floating_point", "is_complex", "element_size", "__len__")
}


def _run_layer(
    kind: tuple[int, bool, tuple[str, ...]],
    function: Any,
    input: Tensor,  # the names that torch gives these arguments
    weight: Tensor,
    bias: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> Any:
    spatial, transposed, names = kind
    if not isinstance(weight, GaussianWeight):
        return NotImplemented
    settings = tuple((dict(zip(names, options, strict=False)) | named).items())
    layer = Layer(function, spatial, transposed, settings)
    x = input.shared if isinstance(input, GaussianWeight) else input
    if spatial and x.dim() == spatial + 1:  # one example without a batch dimension
        output = weight.estimator.layer(layer, x.unsqueeze(0), weight, bias)
        return output if output is NotImplemented else output.squeeze(0)
    return weight.estimator.layer(layer, x, weight, bias)


def _drawn(values: Any) -> Any:
    """Arguments with ordinary draws in place of distributions."""
    if isinstance(values, GaussianWeight):
        return values.shared
    if isinstance(values, tuple | list):
        return type(values)(_drawn(value) for value in values)
    if isinstance(values, dict):
        return {key: _drawn(value) for key, value in values.items()}
    return values
