r"""How much a network can stretch distances between inputs: the product of its layers' norms.

For a chain of layers :math:`f = f_L \circ \dots \circ f_1`,

.. math::  \|f(x) - f(x')\|_2 \le \prod_l L_l \; \|x - x'\|_2,

where :math:`L_l` is the spectral norm of an affine layer and the largest slope of an activation. The norm of a
convolution is that of its operator on inputs of the size that it is given, with its stride and padding, not that of its
kernel as a matrix; it is found by power iteration on the operator and its adjoint. The product is usually far above the
largest stretch; :mod:`~pyrobnn.diagnostics.generalization.input_stability` has the local one.

Szegedy et al., *Intriguing properties of neural networks* (2014); Yoshida & Miyato, *Spectral norm regularization*
(2017); Gouk, Frank, Pfahringer & Cree, *Regularisation of neural networks by enforcing Lipschitz continuity* (2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics.generalization.power_iteration import top_singular_values
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.training.running_statistics import BATCH_NORMS

__all__ = ["LipschitzBound", "check_inputs", "lipschitz_bound"]

_AFFINE: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.ZeroPad2d,
    *BATCH_NORMS,
)
_SLOPES: dict[type[nn.Module], float] = {
    nn.Identity: 1.0,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
    nn.Dropout: 1.0,  # off in evaluation mode
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Hardtanh: 1.0,
    nn.Tanh: 1.0,
    nn.Softplus: 1.0,
    nn.Softsign: 1.0,
    nn.Sigmoid: 0.25,
    nn.SELU: 1.7581,
    nn.GELU: 1.1291,
    nn.SiLU: 1.0999,
    nn.Mish: 1.0885,
}
"""Largest slopes, rounded upward."""


@dataclass(frozen=True)
class LipschitzBound:
    """The product of the layers' norms.

    Attributes:
        product: The bound of the whole network, in the Euclidean norm.
        layers: The norm of each layer, in their order, by name.
    """

    product: float
    layers: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {norm:.4g}" for name, norm in self.layers.items() if norm != 1.0)
        return f"Lipschitz constant at most {self.product:.4g}: {parts or 'all layers 1'}"


@explained
def lipschitz_bound(net: nn.Module, x: Tensor) -> LipschitzBound:
    """The product bound of a chain of layers, in evaluation mode.

    Args:
        net: An :class:`torch.nn.Sequential`, nested or not, of linear layers, (transposed) convolutions, average and
            max pooling, BatchNorm and activations; or one such layer.
        x: An input ``[1, ...]``, or several, for the sizes that layers are given.

    Returns:
        The bound. Norms of affine layers are found by power iteration to a relative change of 1e-7, from below.

    Raises:
        TypeError: If ``x`` is no floating-point tensor.
        ValueError: If the network is no such chain; the error names the layer.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}.")
    check_inputs(x)
    norms: dict[str, float] = {}
    with torch.no_grad(), evaluating(net), frozen_buffers(net):
        _walk(net, "", x[:1].detach(), norms)
    return LipschitzBound(math.prod(norms.values()), norms)


def check_inputs(x: Any) -> None:
    """Refuses what is no batch of finite floating-point inputs.

    Raises:
        TypeError: If it is of another kind.
        ValueError: If it is empty or not finite.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: expected a tensor of floating-point inputs, got {kind}.")
    if x.dim() < 2 or not x.numel():
        raise ValueError(f"x: expected inputs [N, ...] with at least one row, got shape {list(x.shape)}.")
    if not bool(x.isfinite().all()):
        raise ValueError("x: it holds NaN or infinite inputs; clean the data.")


def _walk(layer: nn.Module, name: str, x: Tensor, norms: dict[str, float]) -> Tensor:
    """Runs the chain, noting each layer's norm; returns its output."""
    if isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward:
        for local, child in layer._modules.items():  # named_children would skip a layer that is used twice
            assert child is not None
            x = _walk(child, f"{name}.{local}" if name else local, x, norms)
        return x
    norms[name or type(layer).__name__] = _norm(layer, name, x)
    return layer(x)


def _norm(layer: nn.Module, name: str, x: Tensor) -> float:
    kind = type(layer)
    if kind in _SLOPES:
        return _SLOPES[kind]
    if isinstance(layer, nn.LeakyReLU):
        return max(1.0, abs(layer.negative_slope))
    if isinstance(layer, nn.ELU):
        return max(1.0, layer.alpha)
    if isinstance(layer, nn.PReLU):
        return max(1.0, float(layer.weight.abs().max()))
    if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) and not layer.return_indices:
        return _overlap(layer, x.dim() - 2) ** 0.5
    if kind not in _AFFINE or (isinstance(layer, BATCH_NORMS) and layer.running_mean is None):
        where = f"the layer {name!r}, a {kind.__name__}," if name else f"a {kind.__name__}"
        raise ValueError(
            f"net: no norm is known of {where}; expected an nn.Sequential of linear, convolutional, pooling and "
            "BatchNorm layers and activations. The local estimates of input_stability take any network."
        )
    with torch.enable_grad():
        leaf = torch.zeros_like(x).requires_grad_()
        outputs = layer(leaf)
        dual = torch.zeros_like(outputs).requires_grad_()
        (pulled,) = torch.autograd.grad(outputs, leaf, dual, create_graph=True)

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, dual, v, retain_graph=True)[0]

    def adjoint(u: Tensor) -> Tensor:
        return torch.autograd.grad(outputs, leaf, u, retain_graph=True)[0]

    return float(top_singular_values(forward, adjoint, x))


def _overlap(layer: Any, dims: int) -> int:
    """The number of windows that one input can be the largest of: the square of max pooling's constant."""

    def sizes(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, tuple) else (value,) * dims

    shape = zip(sizes(layer.kernel_size), sizes(layer.stride), sizes(layer.dilation), strict=True)
    return math.prod(math.ceil(k / stride) if dilation == 1 else k for k, stride, dilation in shape)
