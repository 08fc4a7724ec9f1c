"""Nested loops in C++ around one statement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["Nest"]


class Nest:
    """Loops around one statement, with what it needs computed as far outside as is possible.

    Args:
        sizes: Iterations by dimension.
        order: Dimensions from the outermost loop to the innermost; others have one element.

    Attributes:
        index: The variable of each dimension, ``"0"`` for those without a loop.
        names: Names of what was computed, by what it is.
        is_flat: Whether all arrays are read in the order of the iterations.
    """

    def __init__(self, sizes: Sequence[int], order: Sequence[int]) -> None:
        self.order, self.sizes = list(order), sizes
        self.index = [f"i{d}" if d in self.order else "0" for d in range(len(sizes))]
        self.names: dict[Any, str] = {}
        self.is_flat = True
        self._neighboring: dict[int, int] = {}
        self._lines: list[list[str]] = [[] for _ in range(len(self.order) + 1)]

    def read(self, layout: Tensor, index: Sequence[str]) -> None:
        """Notes how an array is read."""
        size = math.prod(n for n, stride in zip(layout.shape, layout.stride(), strict=True) if stride)
        self.is_flat &= layout.numel() == 1 or (layout.is_contiguous() and [*index] == self.index)
        for variable, stride in zip(index, layout.stride(), strict=True):
            if stride == 1 and variable != "0":
                d = self.index.index(variable)
                self._neighboring[d] = self._neighboring.get(d, 0) + size

    @property
    def innermost(self) -> int | None:
        """The dimension along which most is read at neighboring addresses, the last of those."""
        return max(self.order, key=lambda d: (self._neighboring.get(d, 0), d), default=None)

    def define(self, key: Any, kind: str, expression: str, index: Sequence[str]) -> str:
        """A name for an expression that depends on these variables."""
        if key not in self.names:
            depths = [place + 1 for place, d in enumerate(self.order) if f"i{d}" in index]
            self.names[key] = f"v{len(self.names)}"
            self._lines[max(depths, default=0)].append(f"const {kind} {self.names[key]} = {expression};")
        return self.names[key]

    def lines(self, statement: str, *, simd: str | None = "", within: int = 0, around: Sequence[str] = ("", "")) -> str:
        """The loops with a statement in the innermost.

        Args:
            statement: The statement.
            simd: Clauses of the innermost loop, whose iterations are independent but for those; None: they are not.
            within: Number of loops around ``around``.
            around: What comes before and after the other loops.
        """
        text = ["{"]
        for depth in range(len(self.order) + 1):
            if depth:
                d = self.order[depth - 1]
                if depth == len(self.order) and simd is not None:
                    text.append(f"#pragma omp simd {simd}".rstrip())
                text.append(f"for (long i{d} = 0; i{d} < {self.sizes[d]}; ++i{d}) {{")
            text += self._lines[depth]
            if depth == within and around[0]:
                text.append(around[0])
        text.append(statement)
        for depth in reversed(range(len(self.order) + 1)):
            if depth == within and around[1]:
                text.append(around[1])
            text.append("}")
        return "\n".join(text)
