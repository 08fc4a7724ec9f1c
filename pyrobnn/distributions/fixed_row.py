"""Distributions of matrices of which one row is a constant, such as the padding row of an embedding."""

# Pyro declares the attributes of torch distributions on subclasses only.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint, independent, real
from torch.distributions.transforms import ComposeTransform, Transform

from pyrobnn.distributions.independent import base_constraint

__all__ = ["FixedRow", "InsertRow", "with_row", "without_row"]


def without_row(matrix: Tensor, index: int) -> Tensor:
    """``[..., R, C]`` without row ``index``: ``[..., R - 1, C]``."""
    return torch.cat([matrix[..., :index, :], matrix[..., index + 1 :, :]], -2)


def with_row(matrix: Tensor, index: int, row: Tensor) -> Tensor:
    """``[..., R, C]`` with ``row`` ``[C]`` inserted at ``index``: ``[..., R + 1, C]``."""
    inserted = row.to(matrix).expand(*matrix.shape[:-2], 1, -1)
    return torch.cat([matrix[..., :index, :], inserted, matrix[..., index:, :]], -2)


class _RowIsFixed(Constraint):
    """Matrices whose row ``index`` is ``row``, and whose others satisfy ``others``."""

    event_dim = 2

    def __init__(self, others: Constraint, index: int, row: Tensor) -> None:
        super().__init__()
        self.others, self.index, self.row = others, index, row

    def check(self, value: Tensor) -> Tensor:
        """Whether each matrix does."""
        is_fixed = (value[..., self.index, :] == self.row.to(value)).all(-1)
        return is_fixed & self.others.check(without_row(value, self.index))


class InsertRow(Transform):
    """From the other rows ``[..., R - 1, C]`` to the matrix ``[..., R, C]``; volumes stay.

    Args:
        others: What the other rows satisfy.
        index: Position of the row.
        row: Its value ``[C]``.
    """

    bijective = True
    sign = +1

    def __init__(self, others: Constraint, index: int, row: Tensor) -> None:
        super().__init__()
        self.others, self.index, self.row = others, index, row

    @property
    def domain(self) -> Constraint:  # type: ignore[override]
        """The other rows."""
        return self.others

    @property
    def codomain(self) -> Constraint:  # type: ignore[override]
        """Matrices with the row."""
        return _RowIsFixed(self.others, self.index, self.row)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, InsertRow)
            and self.index == other.index
            and (self.row is other.row or torch.equal(self.row.to(other.row), other.row))
        )

    __hash__ = None  # type: ignore[assignment]

    def _call(self, x: Tensor) -> Tensor:
        return with_row(x, self.index, self.row)

    def _inverse(self, y: Tensor) -> Tensor:
        return without_row(y, self.index)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero."""
        return x.new_zeros(x.shape[:-2])

    def forward_shape(self, shape: Any) -> torch.Size:
        """One row more."""
        return torch.Size((*shape[:-2], shape[-2] + 1, shape[-1]))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """One row less."""
        return torch.Size((*shape[:-2], shape[-2] - 1, shape[-1]))


class FixedRow(dist.TransformedDistribution):
    """A distribution of the other rows, with the row in its place.

    Args:
        others: Distribution with event shape ``[R - 1, C]``.
        index: Position of the row.
        row: Its value ``[C]``.
    """

    def __init__(self, others: Any, index: int, row: Tensor) -> None:
        self.others, self.index, self.row = others, index, row
        super().__init__(others, [InsertRow(others.support, index, row)], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FixedRow:
        """Of another batch shape."""
        return FixedRow(self.others.expand(batch_shape), self.index, self.row)

    @property
    def mean(self) -> Tensor:
        """The mean of the other rows, and the row."""
        return self.transforms[0](self.others.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of the other rows, and 0."""
        return InsertRow(self.others.support, self.index, torch.zeros_like(self.row))(self.others.variance)


@biject_to.register(_RowIsFixed)
def _(constraint: _RowIsFixed) -> Transform:
    elements = base_constraint(constraint.others)
    others = independent(elements, 2)
    insert = InsertRow(others, constraint.index, constraint.row)
    return insert if elements is real else ComposeTransform([biject_to(others), insert])
