r"""Local reparameterization: draw the layer's outputs instead of its weights.

For an input :math:`x` and independent weights :math:`w_{oi} \sim N(\mu_{oi}, \sigma_{oi}^2)` the outputs are
independent Gaussians,

.. math::  y_o \sim N\Big(\sum_i \mu_{oi} x_i + \mu^b_o,\; \sum_i \sigma_{oi}^2 x_i^2 + (\sigma^b_o)^2\Big),

so each example has its own draw at the cost of a second product. Kingma, Salimans & Welling, *Variational
Dropout and the Local Reparameterization Trick* (2015).

Exact for a linear layer on inputs ``[B, in]``. Where one weight makes several outputs of an example (convolutions,
linear layers on sequences) they are drawn independently, as in the literature: each has the right distribution, their
correlation is dropped, and the gradient is that of a slightly different model (Molchanov, Ashukha & Vetrov 2017 do
so in convolutions). :class:`~pyrobnn.estimators.Flipout` and :class:`~pyrobnn.estimators.PerExample` are exact there.
A weight that one run of the network uses several times (time steps, tied layers) is refused: outputs of a second call
depend on those of the first through the weight, which has not been drawn.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyrobnn.estimators.base import Estimator
from pyrobnn.estimators.uses import OUTPUTS
from pyrobnn.estimators.weight import GaussianWeight, Layer

__all__ = ["LocalReparameterization", "balanced_noise", "drawn_outputs"]

Slots: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""For the gradients by the means and variances of a weight and of its bias."""

_SMALLEST_VARIANCE = 1e-14  # keeps the square root differentiable where all inputs are zero


class LocalReparameterization(Estimator):
    """Draws outputs of linear and convolution layers."""

    name = "local_reparameterization"
    handles = (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    )  # fmt: skip

    def layer(self, layer: Layer, x: Tensor, weight: GaussianWeight, bias: Tensor | None) -> Any:
        """Mean plus noise of the right variance, output by output."""
        return drawn_outputs(layer, x, weight, bias)


def drawn_outputs(layer: Layer, x: Tensor, weight: GaussianWeight, bias: Tensor | None) -> Tensor:
    """Outputs drawn independently given the inputs."""
    for drawn in (weight, bias):
        if isinstance(drawn, GaussianWeight):
            drawn.used(*OUTPUTS)
    of_mean, of_variance = (bias.loc, bias.variance) if isinstance(bias, GaussianWeight) else (bias, None)
    if not layer.spatial and x.dim() == 2 and _is_uncast(x, weight.loc) and (slots := weight.take_slots()) is not None:
        slots_of_bias = (bias.take_slots() if isinstance(bias, GaussianWeight) else None) or (None, None)
        return _DrawnLinear.apply(x, weight.loc, weight.variance, of_mean, of_variance, slots + slots_of_bias)
    mean, variance = layer(x, weight.loc, of_mean), _variances(layer, x, weight.variance, of_variance)
    if not layer.spatial and x.dim() > 2:  # a linear layer's outputs on sequences are views, which stay as they are
        return mean + ((variance + _SMALLEST_VARIANCE).sqrt() * balanced_noise(mean)).to(mean.dtype)
    return _Drawn.apply(mean, variance, 1 if layer.spatial else -1)[0]


def _variances(layer: Layer, x: Tensor, of_weight: Tensor, of_bias: Tensor | None) -> Tensor:
    """The outputs' variances; in float32 where the layer computes in float16, which rounds squares below 6e-8 to 0."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if dtype != torch.float16:
        return layer(x.square(), of_weight, of_bias)
    return _InFloat32.apply(layer, x, of_weight, of_bias)


def _is_uncast(x: Tensor, weight: Tensor) -> bool:
    """Whether both have one dtype and autocasting would not change it."""
    return x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)


class _InFloat32(torch.autograd.Function):
    """Variances in float32, backward, too: autocasting would cast gradients, which are large where variances are small.

    The layer's own graph is made in ``forward`` and differentiated in ``backward``.
    """

    @staticmethod
    def forward(ctx: Any, layer: Layer, x: Tensor, of_weight: Tensor, of_bias: Tensor | None) -> Tensor:
        inputs = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in (x, of_weight, of_bias)]
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            wide: list[Any] = [None if t is None else t.float() for t in inputs]
            variances = layer(wide[0].square(), *wide[1:])
        ctx.graph = inputs, variances
        return variances.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, variances = ctx.graph
        needed = [t for t in inputs if t is not None and t.requires_grad]
        with torch.autocast(gradient.device.type, enabled=False):
            found = iter(torch.autograd.grad(variances, needed, gradient))
        return None, *(next(found) if t is not None and t.requires_grad else None for t in inputs)


class _Drawn(torch.autograd.Function):
    r"""``m + sqrt(v) ε`` with gradients ``g`` and ``g ε / (2 sqrt(v))``, in as few passes over memory as can be."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor, channel: int) -> tuple[Tensor, Tensor]:
        # Noise has the dtype of the variances, which is wider than the means' under autocasting to float16.
        scale = variance.add_(_SMALLEST_VARIANCE).sqrt_()
        noise = balanced_noise(scale, channel)
        mean.addcmul_(scale, noise)
        ctx.mark_dirty(mean, variance)  # their memory is reused
        ctx.set_materialize_grads(False)  # the second output is not returned to users
        ctx.save_for_backward(noise.div_(scale))
        return mean, variance

    @staticmethod
    @once_differentiable  # the saved quotient hides its dependence on the variance
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, Tensor, None]:
        (quotient,) = ctx.saved_tensors
        return gradient, torch.addcmul(gradient.new_zeros(()), gradient, quotient, value=0.5), None


class _DrawnLinear(torch.autograd.Function):
    """A whole linear layer, for steps whose gradients are collected outside autograd, in preallocated buffers.

    Such a step differentiates once, so the memory of the saved quotient is used again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, loc: Tensor, variance: Tensor, of_mean: Any, of_variance: Any, slots: Slots
    ) -> Tensor:
        squares = x * x
        scale = F.linear(squares, variance, of_variance).add_(_SMALLEST_VARIANCE).sqrt_()
        drawn = F.linear(x, loc, of_mean)
        noise = balanced_noise(drawn)
        drawn.addcmul_(scale, noise)
        ctx.save_for_backward(x, squares, loc, variance, noise.div_(scale))
        ctx.slots = slots
        return drawn

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, squares, loc, variance, quotient = ctx.saved_tensors
        for_loc, for_variance, for_mean, for_variance_of_bias = ctx.slots
        needs_x, _, _, needs_mean, needs_variance, _ = ctx.needs_input_grad
        by_variance = torch.addcmul(gradient.new_zeros(()), gradient, quotient, value=0.5, out=quotient)
        by_mean_of_bias = torch.sum(gradient, 0, out=for_mean).detach() if needs_mean else None
        by_variance_of_bias = torch.sum(by_variance, 0, out=for_variance_of_bias).detach() if needs_variance else None
        by_x = None
        if needs_x:
            by_x = (gradient @ loc).addcmul_(x, by_variance @ variance, value=2.0)
        # Results are detached because autograd copies a gradient that is referenced elsewhere, as the slots are here.
        by_loc = torch.mm(gradient.t(), x, out=for_loc).detach()
        by_weight_variance = torch.mm(by_variance.t(), squares, out=for_variance).detach()
        return by_x, by_loc, by_weight_variance, by_mean_of_bias, by_variance_of_bias, None


def balanced_noise(like: Tensor, channel: int = -1) -> Tensor:
    """Standard normals for a batch of outputs, of which eight examples share one block of random numbers.

    The quarters of the channels have the signs of four orthogonal (Hadamard) rows and of their mirror images.
    Each example's are independent standard normals and gradients are unbiased; noise of first order cancels between
    mirror images, as far as the examples resemble each other, and random numbers, half of the cost of a convolution's
    noise, cost an eighth. With less than four channels two examples share a block.
    """
    if like.dim() == 1:  # one example without a batch
        return torch.randn_like(like)
    rows = len(like)
    signs = _balanced_signs(like.shape[channel], like.dim(), channel, like.dtype, like.device)
    block = torch.empty_like(like[: -(-rows // len(signs))]).normal_()  # in the memory format of the outputs
    noise = (signs * block).flatten(0, 1)
    return noise if len(noise) == rows else noise[:rows]


@cache
def _balanced_signs(channels: int, dim: int, channel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Eight or two rows of signs in pairs of mirror images, to be broadcast with blocks of ``dim`` dimensions."""
    rows = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]] if channels >= 4 else [[1] * 4])
    signs = rows[:, 4 * torch.arange(channels) // channels]
    shape = [1] * dim
    shape[channel] = channels
    return torch.stack([signs, -signs], 1).to(device, dtype).view(-1, *shape)
