"""The prior of an embedding with a padding row, which is a constant and no weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrobnn.distributions.fixed_row import FixedRow, with_row, without_row
from pyrobnn.model.priors.base import Prior

__all__ = ["PaddedPrior"]


class PaddedPrior(Prior):
    """A prior of all rows but one.

    Args:
        others: The prior of the other rows ``[R - 1, C]``.
        index: Position of the padding row.
        row: Its value ``[C]``.
    """

    row: Tensor

    def __init__(self, others: Prior, index: int, row: Tensor) -> None:
        super().__init__(torch.Size((others.shape[0] + 1, *others.shape[1:])))
        self.others, self.index = others, index
        self.auxiliary = others.auxiliary
        self.register_buffer("row", row.detach().clone())
        self._built: tuple[Any, Tensor, FixedRow] | None = None

    def conditional(self, **auxiliary: Tensor) -> Any:
        """The distribution with the row inserted; the same object while that of the other rows and the row are."""
        others = self.others.conditional(**auxiliary)
        if isinstance(others, Tensor):
            return with_row(others, self.index, self.row)
        if self._built is None or self._built[0] is not others or self._built[1] is not self.row:
            self._built = others, self.row, FixedRow(others, self.index, self.row)
        return self._built[2]

    def initial(self, value: Tensor) -> dict[str, Tensor]:
        """Values for the other rows; a padding row of its own is not kept."""
        found = self.others.initial(without_row(value, self.index))
        if "" in found:
            found[""] = with_row(found[""], self.index, self.row)
        return found

    def extra_repr(self) -> str:
        """One line: the prior of the other rows."""
        return f"{self.others.extra_repr()}, row {self.index} fixed"

    def _config(self) -> dict[str, Any]:
        return {"others": self.others.spec(), "index": self.index}
