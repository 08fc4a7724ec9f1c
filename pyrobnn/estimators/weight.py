"""A Gaussian weight that decides at the layer how it is drawn.

Under an estimator the model is not handed a drawn weight but a :class:`GaussianWeight`. Linear and convolution layers
that receive one dispatch (by torch's ``__torch_function__`` protocol) to the estimator, which draws outputs, signs or
one weight per example; whatever else touches it sees one ordinary draw, the same for the whole step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pyrobnn.estimators.base import Estimator

__all__ = ["GaussianWeight", "Layer"]


class GaussianWeight(Tensor):
    """The distribution :math:`N(\\mu, \\sigma^2)` of a weight in place of a draw.

    Attributes:
        loc: Means, with gradients.
        scale: Standard deviations.
        estimator: How layers draw.
        buffer: If given, :attr:`variance` and :meth:`deviations` are leaves, whose gradients
            :meth:`add_log_scale_gradient` collects, instead of functions of ``scale`` in the graph; the first of them
            is written here.
        noise: If given, gives the standard normals of the step's one deviation.
        slot: Memory for the gradient with respect to ``loc``, if there is some to be written to.
    """

    loc: Tensor
    scale: Tensor
    estimator: Estimator
    buffer: Tensor | None
    noise: Callable[[], Tensor] | None
    slot: Tensor | None
    _variance: Tensor | None
    _deviations: dict[int, Tensor]

    @staticmethod
    def of(
        loc: Tensor,
        scale: Tensor,
        estimator: Estimator,
        buffer: Tensor | None = None,
        noise: Callable[[], Tensor] | None = None,
        slot: Tensor | None = None,
    ) -> GaussianWeight:
        """Wraps a mean and a standard deviation of equal shape."""
        weight = loc.detach().as_subclass(GaussianWeight)
        weight.loc, weight.scale, weight.estimator = loc, scale, estimator
        weight.buffer, weight.noise, weight.slot = buffer, noise, slot
        weight._variance, weight._deviations = None, {}
        return weight

    @property
    def variance(self) -> Tensor:
        """``σ²``."""
        if self._variance is None:
            if self.buffer is None:
                self._variance = self.scale.square()
            else:
                with torch.no_grad():
                    value = torch.mul(self.scale, self.scale, out=self._room())
                self._variance = value.requires_grad_()
        return self._variance

    def deviations(self, count: int = 0, *, mirrored: bool = False) -> Tensor:
        """``σε``: one for the step (``count`` 0), or ``count`` of them on a new first dimension.

        Those are independent, or if ``mirrored`` the second half is the first with the other sign.
        """
        if count not in self._deviations:
            if self.buffer is None:
                self._deviations[count] = self._noise(count, mirrored) * self.scale
            else:
                with torch.no_grad():
                    if self.noise is not None and not count:
                        value = torch.mul(self.noise(), self.scale, out=self._room())
                    else:
                        value = self._noise(count, mirrored).mul_(self.scale)
                self._deviations[count] = value.requires_grad_()
        return self._deviations[count]

    def take_slot(self) -> Tensor | None:
        """:attr:`slot` for the first layer that asks; gradients of further ones are added to what it holds."""
        slot, self.slot = self.slot, None
        return slot

    @property
    def shared(self) -> Tensor:
        """One draw ``μ + σε`` for the whole step."""
        return self.loc + self.deviations()

    def _noise(self, count: int, mirrored: bool) -> Tensor:
        noise, half = self._room(count), count // 2
        if not mirrored or not half:
            return noise.normal_()
        noise[half:].normal_()
        torch.neg(noise[-half:], out=noise[:half])
        return noise

    def _room(self, count: int = 0) -> Tensor:
        """Memory for a leaf: the buffer for the first that fits it."""
        if self.buffer is not None and not count and self._variance is None and not self._deviations:
            return self.buffer.data  # sites share storage, not values: each needs a version counter of its own
        shape = ((count,) if count else ()) + tuple(self.scale.shape)
        return torch.empty(shape, dtype=self.scale.dtype, device=self.scale.device)

    def add_log_scale_gradient(self, total: Tensor) -> None:
        """Adds the loss's gradient with respect to ``log σ``, ``2σ² dL/dσ² + σε dL/d(σε)``, from the leaves'."""
        if self._variance is not None and self._variance.grad is not None:
            total.addcmul_(self._variance.grad, self._variance.detach(), value=2.0)
        for count, deviation in self._deviations.items():
            if deviation.grad is None:
                continue
            if count:
                total.add_(deviation.grad.mul_(deviation.detach()).sum(0))
            else:
                total.addcmul_(deviation.grad, deviation.detach())

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
