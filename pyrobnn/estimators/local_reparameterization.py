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
    return torch.addcmul(mean, (variance + _SMALLEST_VARIANCE).sqrt(), torch.randn_like(mean))
