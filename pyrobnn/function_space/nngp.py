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
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.function_space.dual import DualActivation
from pyrobnn.function_space.limits import Limit
from pyrobnn.function_space.prior_scales import network_of, prior_scales

__all__ = ["Kind", "kernel", "kernel_diagonal"]

Kind = Literal["nngp", "ntk"]


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
        max_bytes: Budget for what is held at once; rows of ``x1`` are taken in blocks.

    Returns:
        ``[N1, N2]`` in double precision, with gradients for ``scales`` that require them.

    Raises:
        TypeError: If the model or an input is of the wrong kind.
        ValueError: If a layer has no limit, a prior is not Normal with mean 0 and one scale, or ``kind`` is unknown.
    """
    limit = _limit(model, kind, scales, activations)
    if not isinstance(x1, Tensor) or not isinstance(x2, Tensor | None):
        raise TypeError(f"x1, x2: expected tensors, got {type(x1).__name__} and {type(x2).__name__}.")
    check_positive_int("max_bytes", max_bytes)
    same = x2 is None
    other = x1 if x2 is None else x2
    if x1.shape[1:] != other.shape[1:] or x1.dim() < 2:
        raise ValueError(
            f"x2: expected inputs of the same shape as x1, [N, ...], got {list(other.shape)} beside {list(x1.shape)}."
        )
    rows = limit.rows(x1, other, max_bytes)
    blocks = [limit(block, other, paired=False) for block in x1.split(rows)] if len(x1) else [limit(x1, other)]
    found = torch.cat(blocks)
    if same:  # exactly symmetric, with variances that rounding does not touch
        found = (found + found.mT) / 2
        found = torch.where(torch.eye(len(x1), dtype=torch.bool, device=found.device), _own(limit, x1, rows), found)
    return found


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
    limit = _limit(model, kind, scales, activations)
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor of inputs, got {type(x).__name__}.")
    return _own(limit, x, max(1, max_bytes // (1 + limit.bytes_per_pair(x))))


def _own(limit: Limit, x: Tensor, rows: int) -> Tensor:
    return torch.cat([limit(block, block, paired=True) for block in x.split(max(1, rows))])


def _limit(
    model: nn.Module,
    kind: str,
    scales: Mapping[str, Tensor] | None,
    activations: Mapping[type[nn.Module], DualActivation] | None,
) -> Limit:
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
