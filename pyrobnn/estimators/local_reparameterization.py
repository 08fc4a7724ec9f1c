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
    if isinstance(bias, GaussianWeight):
        mean, variance = layer(x, weight.loc, bias.loc), layer(x.square(), weight.variance, bias.variance)
    else:
        mean, variance = layer(x, weight.loc, bias), layer(x.square(), weight.variance)
    return _Drawn.apply(mean, variance)


class _Drawn(torch.autograd.Function):
    r"""``m + sqrt(v) ε`` with gradients ``g`` and ``g ε / (2 sqrt(v))``, in as few passes over memory as can be.

    The second half of the batch has the first half's noise with the other sign: examples are still drawn as q says, and
    their gradients unbiased; random numbers, half of the cost of a convolution's noise, are halved.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> Tensor:
        noise, half = torch.empty_like(mean), (len(mean) + 1) // 2 if mean.dim() > 1 else len(mean)  # no batch: whole
        noise[:half].normal_()
        torch.neg(noise[: len(mean) - half], out=noise[half:])
        scale = (variance + _SMALLEST_VARIANCE).sqrt_()
        drawn = torch.addcmul(mean, scale, noise)
        ctx.save_for_backward(noise.div_(scale))
        return drawn

    @staticmethod
    @once_differentiable  # the saved quotient hides its dependence on the variance
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (quotient,) = ctx.saved_tensors
        return gradient, torch.addcmul(gradient.new_zeros(()), gradient, quotient, value=0.5)
