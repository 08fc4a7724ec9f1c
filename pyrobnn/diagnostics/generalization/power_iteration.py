r"""Power iteration: the largest singular or eigenvalue of operators that are given as functions, one for each row.

.. math::  v \leftarrow \frac{A^\top A v}{\|A^\top A v\|}, \qquad \sigma_1 \approx \|A v\|,

which grows toward :math:`\sigma_1` from below, its error shrinking by :math:`(\sigma_2 / \sigma_1)^4` with each step.
For a symmetric H the iteration with H itself finds the eigenvalue of largest modulus m; where that is negative, a
second one with :math:`H + m I` finds the largest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["top_eigenvalues", "top_singular_values"]

Operator = Callable[[Tensor], Tensor]
"""A linear map of each row of a batch ``[N, ...]``, which does not see the other rows."""

STEPS = 500
TOLERANCE = 1e-7
"""Relative change, in all rows, at which the iteration stops; in single precision 1e-6, which rounding leaves."""
_ROUNDING = 8
_PATIENCE = 3  # steps in a row with so small a change


def top_singular_values(
    forward: Operator, adjoint: Operator, like: Tensor, *, steps: int = STEPS, tolerance: float = TOLERANCE
) -> Tensor:
    """The largest singular value of each row's operator ``[N]``.

    Args:
        forward: The operator, from ``[N, ...]`` as ``like`` is.
        adjoint: Its adjoint.
        like: A batch of its inputs, for shape, dtype and device.
        steps: Most iterations.
        tolerance: Relative change at which to stop.
    """
    tolerance = max(tolerance, _ROUNDING * torch.finfo(like.dtype).eps)
    v, found, calm = _start(like), like.new_zeros(len(like)), 0
    for _ in range(steps):
        u = forward(v)
        before, found = found, _norm(u)
        calm = calm + 1 if bool(((found - before).abs() <= tolerance * found).all()) else 0
        if calm == _PATIENCE:
            break
        v = _normed(adjoint(u))
    return found


def top_eigenvalues(product: Operator, like: Tensor, *, steps: int = STEPS, tolerance: float = TOLERANCE) -> Tensor:
    """The largest (not the largest in modulus) eigenvalue of each row's symmetric operator ``[N]``.

    Args:
        product: The operator.
        like: A batch of its inputs.
        steps: Most iterations, of each of two rounds.
        tolerance: Change relative to the largest modulus at which to stop.
    """
    value, modulus = _dominant(product, like, steps, tolerance)
    shift = torch.where(value < modulus * (1.0 - 1e-3), modulus, 0.0)
    if not bool((shift > 0).any()):
        return value
    shape = shift.reshape(-1, *[1] * (like.dim() - 1))
    shifted, _ = _dominant(lambda v: product(v) + shape * v, like, steps, tolerance)
    return torch.where(shift > 0, shifted - shift, value)


def _dominant(product: Operator, like: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Rayleigh quotient and norm ``[N]`` where the iteration ended."""
    tolerance = max(tolerance, _ROUNDING * torch.finfo(like.dtype).eps)
    v, value, calm = _start(like), like.new_zeros(len(like)), 0
    norm = value
    for _ in range(steps):
        moved = product(v)
        before, value, norm = value, (v * moved).flatten(1).sum(1), _norm(moved)
        calm = calm + 1 if bool(((value - before).abs() <= tolerance * norm).all()) else 0
        if calm == _PATIENCE:
            break
        v = _normed(moved)
    return value, norm


def _start(like: Tensor) -> Tensor:
    """A random unit vector for each row, always the same."""
    generator = torch.Generator().manual_seed(0)
    return _normed(torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like))


def _norm(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1)


def _normed(rows: Tensor) -> Tensor:
    norm = _norm(rows).clamp_min(torch.finfo(rows.dtype).tiny)
    return rows / norm.reshape(-1, *[1] * (rows.dim() - 1))
