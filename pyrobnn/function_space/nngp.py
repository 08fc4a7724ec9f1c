r"""kernel(): the Gaussian process that a network is under its prior, in the limit of infinitely many hidden units.

With weights of prior variance :math:`s^2` on :math:`n` inputs, biases of variance :math:`s_b^2` and an activation
:math:`\phi` (Neal 1996; Lee et al. 2018; Matthews et al. 2018)

.. math::  K^1(x, x') = s_b^2 + s^2 x^\top x', \qquad
           K^{l+1}(x, x') = s_b^2 + n s^2\, E\big[\phi(u)\phi(v)\big], \quad
           (u, v) \sim N\big(0, K^l \text{ at } (x, x')\big).

Priors and widths are those of the model that is given, so it is the limit of *this* network: :math:`n s^2` is kept
while :math:`n` grows. The neural tangent kernel (Jacot, Gabriel & Hongler 2018) measures every weight in units of its
prior's standard deviation, :math:`\Theta = \sum_p s_p^2\, \partial_p f(x)\, \partial_p f(x')`, so that

.. math::  \Theta^1 = K^1, \qquad \Theta^{l+1} = K^{l+1} + n s^2\, E\big[\phi'(u)\phi'(v)\big]\, \Theta^l .

It is the prior covariance of the network linearized at a draw from the prior, and what training follows when steps are
small and wide layers move little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.dual import DualActivation
from pyrobnn.function_space.limits import Limit
from pyrobnn.function_space.prior_scales import network_of, prior_scales

__all__ = ["Kind", "covariance", "kernel", "kernel_diagonal", "limit_of", "paired_covariance"]

Kind = Literal["nngp", "ntk"]

_SYMMETRIC_BLOCKS = 8  # of which 9 / 16 are computed
_LEAST_ROWS = 64  # of a block, so that small matrices are one


@explained
def kernel(
    model: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    kind: Kind = "nngp",
    *,
    scales: Mapping[str, Tensor] | None = None,
    activations: Mapping[type[nn.Module], DualActivation] | None = None,
    max_bytes: int = 256 * 2**20,
) -> Tensor:
    """Covariances of the infinitely wide network's outputs at two sets of inputs.

    Outputs are independent and equally distributed, so one matrix serves all of them. Layers: ``Linear``; ``Conv1d`` to
    ``Conv3d`` (zero padding); ReLU, leaky ReLU, GELU, tanh, sigmoid, SiLU and other elementwise functions; ``Flatten``,
    ``Dropout`` (off) and ``Identity``; sums of branches that end in layers of weights of their own; average pooling,
    which costs the square of the number of positions in time and memory. Anything before the first layer of weights is
    applied to the inputs.

    Args:
        model: A :class:`~pyrobnn.SupervisedModel`, a bayesianized network, or a plain one (under the default prior).
        x1: Inputs ``[N1, ...]``.
        x2: Inputs ``[N2, ...]``; those of ``x1`` if None.
        kind: ``"nngp"``, the covariance under the prior, or ``"ntk"``, the neural tangent kernel.
        scales: Prior standard deviations by parameter of the network in place of the model's, with gradients if wanted.
        activations: Second moments of elementwise modules of your own, by class.
        max_bytes: Budget for what is held beside the result; rows of ``x1`` are taken in blocks.

    Returns:
        ``[N1, N2]`` in double precision, with gradients for ``scales`` that require them.

    Raises:
        TypeError: If the model or an input is of the wrong kind.
        ValueError: If a layer has no limit, a prior is not Normal with mean 0 and one scale, or ``kind`` is unknown.
    """
    limit = limit_of(model, kind, scales, activations)
    if not isinstance(x1, Tensor) or not isinstance(x2, Tensor | None):
        raise TypeError(f"x1, x2: expected tensors, got {type(x1).__name__} and {type(x2).__name__}.")
    check_positive_int("max_bytes", max_bytes)
    if (x2 is not None and x1.shape[1:] != x2.shape[1:]) or x1.dim() < 2:
        other = x1 if x2 is None else x2
        raise ValueError(
            f"x2: expected inputs of the same shape as x1, [N, ...], got {list(other.shape)} beside {list(x1.shape)}."
        )
    return covariance(limit, x1, x2, max_bytes)


@explained
def kernel_diagonal(
    model: nn.Module,
    x: Tensor,
    kind: Kind = "nngp",
    *,
    scales: Mapping[str, Tensor] | None = None,
    activations: Mapping[type[nn.Module], DualActivation] | None = None,
    max_bytes: int = 256 * 2**20,
) -> Tensor:
    """Variances of the infinitely wide network's outputs ``[N]``; arguments and errors are those of :func:`kernel`."""
    limit = limit_of(model, kind, scales, activations)
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor of inputs, got {type(x).__name__}.")
    return paired_covariance(limit, x, x, max_bytes)


def covariance(limit: Limit, x1: Tensor, x2: Tensor | None, max_bytes: int) -> Tensor:
    """``[N1, N2]`` in blocks of rows; of ``x1`` with itself if ``x2`` is None, whose lower triangle is the upper's."""
    if x2 is not None or not len(x1):
        other = x1 if x2 is None else x2
        blocks = x1.split(limit.rows(x1, other, max_bytes)) if len(x1) else [x1]
        return torch.cat([limit(block, other) for block in blocks])
    size = min(limit.rows(x1, x1, max_bytes), max(_LEAST_ROWS, -(-len(x1) // _SYMMETRIC_BLOCKS)))
    starts = range(0, len(x1), size)
    found = torch.cat([F.pad(limit(x1[k : k + size], x1[k:]), (k, 0)) for k in starts]).triu_(1)
    found = found + found.mT
    found.diagonal().copy_(paired_covariance(limit, x1, x1, max_bytes))  # without the rounding of products
    return found


def paired_covariance(limit: Limit, x1: Tensor, x2: Tensor, max_bytes: int) -> Tensor:
    """``[N]``, of each row of ``x1`` with the same row of ``x2``."""
    rows = max(1, max_bytes // (1 + limit.bytes_per_pair(x1)))
    return torch.cat([limit(*pair, paired=True) for pair in zip(x1.split(rows), x2.split(rows), strict=True)])


def limit_of(
    model: nn.Module,
    kind: str,
    scales: Mapping[str, Tensor] | None,
    activations: Mapping[type[nn.Module], DualActivation] | None,
) -> Limit:
    """The limit of a model's network; arguments and errors are those of :func:`kernel`."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected 'nngp' or 'ntk', got {kind!r}.")
    for given, dual in (activations or {}).items():
        if not isinstance(dual, DualActivation):
            raise TypeError(
                f"activations: expected a DualActivation for {given!r}, such as HermiteSeries(torch.sin), got "
                f"{type(dual).__name__}."
            )
    net = network_of(model)
    found = prior_scales(net)
    unknown = set(scales or {}) - set(found)
    if unknown:
        raise ValueError(
            f"scales: the network has no parameter {sorted(unknown)[0]!r} with a prior; it has {', '.join(found)}."
        )
    return Limit(net.network, {**found, **(scales or {})}, dict(activations or {}), tangent=kind == "ntk")
