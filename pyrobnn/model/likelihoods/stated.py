"""Numbers that were stated, kept as they are through changes of precision."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["StatedNumbers"]


class StatedNumbers(nn.Module):
    """Base class of modules with numbers that were stated: not rounded to an earlier dtype after ``double()``.

    A 0.1 in single precision would be 0.10000000149 in double precision; it is 0.1 again, unless the numbers have
    changed meanwhile (trained or loaded).

    Args:
        stated: The numbers, in full precision; None where there are none.
    """

    def __init__(self, stated: Tensor | None) -> None:
        super().__init__()
        self._stated = stated

    @abstractmethod
    def numbers(self) -> Tensor:
        """The parameter or buffer that holds them."""

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        if self._stated is None:
            return super()._apply(fn, recurse)
        before = self.numbers().detach().clone()
        super()._apply(fn, recurse)
        now = self.numbers()
        if now.dtype != before.dtype and torch.equal(self._stated.to(before), before):
            now.data.copy_(self._stated)
        return self
