"""What loops compute with: results that are stored or written as formulas, seen through views."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["KINDS", "PARTS", "VIEWS", "Base", "NotExpressibleError", "Value", "address", "kind_of", "literal"]

_aten = torch.ops.aten
KINDS = {torch.float32: "float", torch.float64: "double", torch.int64: "long", torch.bool: "bool"}
"""Types in C++."""

VIEWS = {
    _aten._unsafe_view.default,
    _aten.alias.default,
    _aten.detach.default,
    _aten.diagonal.default,
    _aten.expand.default,
    _aten.permute.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unbind.int,
    _aten.unsqueeze.default,
    _aten.view.default,
}
"""Operators that return views."""

PARTS: dict[Any, Callable[..., Tensor]] = {
    _aten.slice_backward.default: _aten.slice.Tensor,
    _aten.select_backward.default: _aten.select.int,
}
"""Gradients of views: zeros but for this part."""


class NotExpressibleError(ValueError):
    """A graph has an operator or a type for which there are no loops."""


@dataclass(eq=False)
class Base:
    """A result that is computed in one place: stored if it has a pointer, else a formula.

    Attributes:
        node: What computes it.
        kind: Type in C++.
        pointer: Where it is stored.
        cost: Operations for one element of a formula.
    """

    node: fx.Node
    kind: str
    pointer: str = ""
    cost: int = 0

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        shape: torch.Size = self.node.meta["shape"]
        return shape


@dataclass
class Value:
    """A base seen through views; ``layout`` has the strides, in a base that is stored contiguously."""

    base: Base
    layout: Tensor

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.layout.shape

    def dims_of_base(self) -> list[int | None] | None:
        """For each dimension of the base the one of this view that runs over it; None if there is no such order."""
        if self.layout.storage_offset():
            return None
        found: list[int | None] = []
        stride = math.prod(self.base.shape)
        for size in self.base.shape:
            stride //= max(size, 1)
            here = [d for d, n in enumerate(self.shape) if n == size > 1 and self.layout.stride(d) == stride]
            if size != 1 and len(here) != 1:
                return None
            found.append(here[0] if size != 1 else None)
        left = set(range(len(self.shape))) - set(found)
        return None if any(self.layout.stride(d) and self.shape[d] > 1 for d in left) else found


def kind_of(node: fx.Node) -> str:
    """The type of a result in C++.

    Raises:
        NotExpressibleError: If there is none.
    """
    if node.meta.get("dtype") not in KINDS:  # operators of several results have none
        raise NotExpressibleError(f"there are no loops for {node.target} of {node.meta.get('dtype')}")
    return KINDS[node.meta["dtype"]]


def literal(number: Any, kind: str) -> str:
    """A number in C++."""
    if math.isnan(number):
        return '__builtin_nan("")'
    text = f"{'-' if number < 0 else ''}__builtin_inf()" if math.isinf(number) else repr(float(number))
    return f"({kind}){text}"


def address(layout: Tensor, index: Sequence[str]) -> str:
    """Where an element lies, in elements from the pointer."""
    terms = [str(layout.storage_offset())] if layout.storage_offset() else []
    for variable, stride in zip(index, layout.stride(), strict=True):
        if stride and variable != "0":
            terms.append(variable if stride == 1 else f"{stride} * {variable}")
    return " + ".join(terms) or "0"
