"""The two passes over the factor of a low-rank covariance that a training step makes, as operations of torch.

:mod:`pyrobnn.steps.low_rank_loops` has them as loops in C++, with the same numbers to rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.steps.flat import chunks

__all__ = ["Columns", "LowRankPasses", "TorchPasses"]

# Elements of the flat vector that are worked on at a time: in a product of all rows, and row by row.
_CHUNK = 2**15
_LONG_CHUNK = 2**17


@dataclass(frozen=True)
class Columns:
    """n neighboring elements of the flat vector.

    Attributes:
        factor: The transpose of F, ``[r, n]``; its rows need not be neighbors in memory, as for ``by_factor``.
        loc, noise, deviation: μ, ε and ``δ = σε + Fz``, ``[n]``.
        value: The draw ``μ + δ``; then the gradient g by it.
        scale: σ; then the gradient by ``ψ = log σ``.
        by_factor: The gradient by F, ``[r, n]``.
    """

    factor: Tensor
    loc: Tensor
    noise: Tensor
    deviation: Tensor
    value: Tensor
    scale: Tensor
    by_factor: Tensor

    def __len__(self) -> int:
        return len(self.loc)

    def at(self, part: slice) -> Columns:
        """Some of them."""
        return Columns(**{name: tensor[..., part] for name, tensor in vars(self).items()})


class LowRankPasses(ABC):
    """What is done with every element of the factor, forward and backward."""

    @abstractmethod
    def forward(self, columns: Columns, weights: Tensor, gram: Tensor) -> Tensor:
        """Writes ``deviation`` and ``value``.

        Args:
            columns: The elements, with σ.
            weights: z, ``[r]``.
            gram: ``Fᵀ diag(σ⁻²) F`` is added to it on and below the diagonal, ``[r, r]`` in double precision.

        Returns:
            The sum of squares of σ and F.
        """

    @abstractmethod
    def backward(self, columns: Columns, mixing: Tensor, precision: Tensor, weight: float) -> None:
        """Writes the gradients by ψ and F.

        Args:
            columns: The elements, with σ and g.
            mixing: ``-λ C⁻¹`` and, as last column, z, ``[r, r + 1]``.
            precision: p, ``[n]``, or ``[1]`` for all.
            weight: λ.
        """


class TorchPasses(LowRankPasses):
    """Operations of torch, on any device."""

    def forward(self, columns: Columns, weights: Tensor, gram: Tensor) -> Tensor:
        """In parts that fit a processor's cache."""
        squares, part = weights.new_zeros(()), torch.zeros_like(gram, dtype=weights.dtype)
        for chunk in chunks(slice(0, len(columns)), _LONG_CHUNK):
            own = columns.at(chunk)
            torch.mv(own.factor.T, weights, out=own.value)
            torch.addcmul(own.value, own.scale, own.noise, out=own.deviation)
            torch.add(own.loc, own.deviation, out=own.value)
            squares += own.scale.dot(own.scale)
            precision = (own.scale * own.scale).reciprocal_()
            row = torch.empty_like(precision)
            for index, column in enumerate(own.factor.unbind()):  # faster than a product of narrow matrices
                torch.mul(column, precision, out=row)
                torch.mv(own.factor[: index + 1], row, out=part[index, : index + 1])
                squares += column.dot(column)
            gram += part
        return squares

    def backward(self, columns: Columns, mixing: Tensor, precision: Tensor, weight: float) -> None:
        """In parts that fit a processor's cache."""
        for chunk in chunks(slice(0, len(columns)), _CHUNK):
            own, prior = columns.at(chunk), precision if len(precision) == 1 else precision[chunk]
            variance = own.scale * own.scale
            torch.mm(mixing, torch.cat([own.factor / variance, own.value.unsqueeze(0)]), out=own.by_factor)
            torch.mul(own.value, own.deviation, out=own.scale)
            own.scale.sub_((own.factor * own.by_factor).sum(0)).addcmul_(variance, prior, value=weight).sub_(weight)
            own.by_factor.addcmul_(own.factor, prior, value=weight)
