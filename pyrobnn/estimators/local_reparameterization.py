r"""Local reparameterisation: draw the layer's outputs instead of its weights.

For an input :math:`x` and independent weights :math:`w_{oi} \sim N(\mu_{oi}, \sigma_{oi}^2)` the outputs are
independent Gaussians,

.. math::  y_o \sim N\Big(\sum_i \mu_{oi} x_i + \mu^b_o,\; \sum_i \sigma_{oi}^2 x_i^2 + (\sigma^b_o)^2\Big),

so each example has weights of its own at the cost of a second product. Kingma, Salimans & Welling, *Variational
Dropout and the Local Reparameterization Trick* (2015).

Exact for a linear layer on inputs ``[B, in]``. Where one weight makes several outputs of an example (convolutions,
linear layers on sequences) they are drawn independently, as in the literature: each has the right distribution, their
correlation is dropped, and the gradient is that of a slightly different model. :class:`Flipout` and
:class:`PerExample` are exact there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyrobnn.estimators.base import Estimator
from pyrobnn.estimators.weight import GaussianWeight, Layer

__all__ = ["LocalReparameterization", "drawn_outputs"]

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
    of_mean, of_variance = (bias.loc, bias.variance) if isinstance(bias, GaussianWeight) else (bias, None)
    if weight.slot is not None and not layer.spatial and x.dim() == 2 and _is_uncast(x, weight.loc):
        return _DrawnLinear.apply(x, weight.loc, weight.variance, of_mean, of_variance, weight.take_slot())
    return _Drawn.apply(layer(x, weight.loc, of_mean), layer(x.square(), weight.variance, of_variance))


def _is_uncast(x: Tensor, weight: Tensor) -> bool:
    """Whether both have one dtype and autocasting would not change it."""
    return x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)


class _Drawn(torch.autograd.Function):
    r"""``m + sqrt(v) ε`` with gradients ``g`` and ``g ε / (2 sqrt(v))``, in as few passes over memory as can be."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> Tensor:
        drawn, quotient = _draw(mean, (variance + _SMALLEST_VARIANCE).sqrt_())
        ctx.save_for_backward(quotient)
        return drawn

    @staticmethod
    @once_differentiable  # the saved quotient hides its dependence on the variance
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (quotient,) = ctx.saved_tensors
        return gradient, _by_variance(gradient, quotient)


class _DrawnLinear(torch.autograd.Function):
    """A whole linear layer, for steps whose gradients are collected by hand: that of the means goes to its place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, loc: Tensor, variance: Tensor, of_mean: Any, of_variance: Any, slot: Tensor
    ) -> Tensor:
        squares = x * x
        scale = F.linear(squares, variance, of_variance).add_(_SMALLEST_VARIANCE).sqrt_()
        drawn, quotient = _draw(F.linear(x, loc, of_mean), scale)
        ctx.save_for_backward(x, squares, loc, variance, quotient)
        ctx.slot = slot
        return drawn

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, squares, loc, variance, quotient = ctx.saved_tensors
        needs_x, _, _, needs_mean, needs_variance, _ = ctx.needs_input_grad
        by_variance = _by_variance(gradient, quotient)
        by_x = None
        if needs_x:
            by_x = (gradient @ loc).addcmul_(x, by_variance @ variance, value=2.0)
        return (
            by_x,
            torch.mm(gradient.t(), x, out=ctx.slot).detach(),  # one more reference would have it copied
            by_variance.t() @ squares,
            gradient.sum(0) if needs_mean else None,
            by_variance.sum(0) if needs_variance else None,
            None,
        )


def _draw(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``m + s ε`` and ``ε / s``, where the second half of the batch has the first half's ε with the other sign.

    Examples are still drawn as q says, and their gradients unbiased; random numbers, half of the cost of a
    convolution's noise, are halved.
    """
    noise, half = torch.empty_like(mean), (len(mean) + 1) // 2 if mean.dim() > 1 else len(mean)  # no batch: whole
    noise[:half].normal_()
    torch.neg(noise[: len(mean) - half], out=noise[half:])
    return torch.addcmul(mean, scale, noise), noise.div_(scale)


def _by_variance(gradient: Tensor, quotient: Tensor) -> Tensor:
    """``g ε / (2 sqrt(v))``."""
    return torch.addcmul(gradient.new_zeros(()), gradient, quotient, value=0.5)
