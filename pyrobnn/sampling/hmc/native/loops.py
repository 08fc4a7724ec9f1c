"""The loops in C++ that compute a recorded graph.

Elementwise operations are written where they are used, so that intermediate results live in registers. A result is
stored if it is a sum, a concatenation, expensive and used more than once, or smaller than what it is used for. Views
are only other strides, which torch itself computes on tensors without content.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyrobnn.sampling.hmc.native.nests import Nest
from pyrobnn.sampling.hmc.native.operators import COST, DEFAULTS, EXPRESSIONS, power
from pyrobnn.sampling.hmc.native.values import (
    KINDS,
    PARTS,
    VIEWS,
    Base,
    NotExpressibleError,
    Value,
    address,
    kind_of,
    literal,
)

__all__ = ["Loops"]

_aten = torch.ops.aten
_EXPENSIVE, _LONGEST = 8, 60  # operations: what is worth storing if used twice; what is stored in any case
_ALIGNMENT = 64  # bytes, those of a vector
_LARGEST_PRODUCT = 2**23  # multiplications of a product of matrices, above which a library is faster
_SUMS = {_aten.sum.default, _aten.sum.dim_IntList, _aten.amax.default}


class Loops:
    """Loops for a graph with one input and several results.

    Args:
        recorded: The graph, with the shapes and dtypes that recording noted.
        source: Name of the array with the input.
        results: Names of the arrays for the results.

    Attributes:
        lines: The code.
        constants: Tensors that it reads as arrays ``c0``, ``c1``, ....
        size: Bytes that it needs from the address ``work``.

    Raises:
        NotExpressibleError: If there are no loops for an operator, a type, or tensors without elements.
    """

    def __init__(self, recorded: fx.GraphModule, source: str, results: Sequence[str]) -> None:
        self.lines: list[str] = []
        self.constants: list[Tensor] = []
        self.size = 0
        self._values: dict[fx.Node, Any] = {}
        for node in recorded.graph.nodes:
            if 0 in node.meta.get("shape", ()):
                raise NotExpressibleError(f"there are no loops for shape {tuple(node.meta['shape'])}")
            if node.op == "placeholder":
                self._values[node] = self._input(node, source, torch.empty(node.meta["shape"]))
            elif node.op == "get_attr":
                self._values[node] = self._input(node, f"c{len(self.constants)}", recorded.get_buffer(node.target))
                self.constants.append(recorded.get_buffer(node.target))
            elif node.op == "output":
                for name, result in zip(results, node.args[0], strict=True):
                    self._write(self._values[result], name, torch.empty(result.meta["shape"]))
            else:
                self._values[node] = self._computed(node)

    def _computed(self, node: fx.Node) -> Any:
        """The value of an operation, several ones for a split."""
        target, args = node.target, node.args
        first: Any = args[0]
        if target is operator.getitem:
            return self._values[first][args[1]]
        if target in VIEWS:
            return self._viewed(self._values[first], node)
        if target in EXPRESSIONS or target is _aten.gather.default:
            return self._formula(node)
        if target in _SUMS:
            return self._reduced(node)
        if target is _aten.mm.default:
            return self._product(node, *map(self._values.__getitem__, args))  # type: ignore[arg-type]
        result = self._allocated(node)
        if target is _aten.cat.default:
            dim: Any = (*args, 0)[1]
            start = 0
            for part in map(self._values.__getitem__, first):
                self._write(part, result.base.pointer, result.layout.narrow(dim, start, part.shape[dim]))
                start += part.shape[dim]
        elif target in PARTS:
            self.lines.append(_filled(result, "0"))
            self._write(self._values[first], result.base.pointer, PARTS[target](result.layout, *args[2:]))
        elif target is _aten.scatter_add.default:
            self._write(self._values[first], result.base.pointer, result.layout)
            self._scatter(result, *args[1:])  # type: ignore[arg-type]
        else:
            raise NotExpressibleError(f"there are no loops for {target}")
        return result

    # ---------------------------------------------------------------------------------------------------- values

    def _input(self, node: fx.Node, pointer: str, layout: Tensor) -> Value:
        return Value(Base(node, kind_of(node), pointer), layout)

    def _allocated(self, node: fx.Node) -> Value:
        """A value with an array of its own."""
        value = Value(Base(node, kind_of(node)), torch.empty(node.meta["shape"]))
        self._allocate(value.base)
        return value

    def _allocate(self, base: Base, elements: int | None = None) -> None:
        """Gives a base an array, of as many elements as it has by default; what is never written stays zero."""
        base.pointer = f"b{self.size}"
        self.lines.append(f"{base.kind}* const {base.pointer} = ({base.kind}*)(work + {self.size});")
        size = (math.prod(base.shape) if elements is None else elements) * base.node.meta["dtype"].itemsize
        self.size += -(-size // _ALIGNMENT) * _ALIGNMENT

    def _store(self, base: Base) -> None:
        """Stores what was a formula."""
        if base.pointer:
            return
        layout = torch.empty(base.shape)
        stored = Base(base.node, base.kind)
        self._allocate(stored)
        self._write(Value(base, layout), stored.pointer, layout)
        base.pointer = stored.pointer

    def _viewed(self, value: Value, node: fx.Node) -> Any:
        try:
            seen: Any = node.target(value.layout, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        except RuntimeError:  # not without a copy
            copy = Base(node, value.base.kind)
            self._allocate(copy)
            self._write(value, copy.pointer, torch.empty(value.shape))
            return Value(copy, torch.empty(node.meta["shape"]))
        several = isinstance(seen, tuple | list)
        views = [Value(value.base, layout) for layout in (seen if several else (seen,))]
        if not value.base.pointer and any(view.dims_of_base() is None for view in views):
            self._store(value.base)
        return views if several else views[0]

    def _formula(self, node: fx.Node) -> Value:
        has_function = "{f}(" in _template(node)
        base = Base(node, kind_of(node), cost=COST if has_function else 1)
        size = math.prod(node.meta["shape"])
        # Functions run over one array in one loop: at the end of each row of several they would not be vectorized.
        alone = has_function and sum(n > 1 for n in node.meta["shape"]) > 1
        for operand in _tensors(node, self._values):
            inner = operand.base
            if alone or math.prod(inner.shape) < size or node.target is _aten.gather.default:
                self._store(inner)
            base.cost += 0 if inner.pointer else inner.cost
        if alone or base.cost > _LONGEST or (base.cost >= _EXPENSIVE and _uses(node) > 1):
            self._store(base)
        return Value(base, torch.empty(node.meta["shape"]))

    # ----------------------------------------------------------------------------------------------------- loops

    def _write(self, value: Value, pointer: str, layout: Tensor) -> None:
        """Loops that write a value to where a layout says."""
        shape = value.shape
        dims = [d for d, size in enumerate(shape) if size > 1]
        trial = self._trial(value, dims)
        if len(dims) > 1 and trial.is_flat and layout.is_contiguous():
            nest = Nest([math.prod(shape)] * len(shape), dims[-1:])
        else:
            nest = Nest(shape, _last(dims, trial.innermost))
        name = self._load(nest, value, nest.index)
        self.lines.append(nest.lines(f"{pointer}[{address(layout, nest.index)}] = {name};"))

    def _reduced(self, node: fx.Node) -> Value:
        """A sum or a maximum over some dimensions."""
        value = self._values[node.args[0]]  # type: ignore[index]
        asked: Any = node.args[1] if len(node.args) > 1 else ()
        rank = len(value.shape)
        dims = [d for d in range(rank) if value.shape[d] > 1]
        summed = {d % rank for d in asked} if asked else set(range(rank))
        kept, gone = [d for d in dims if d not in summed], [d for d in dims if d in summed]
        result = self._allocated(node)
        out = torch.empty([value.shape[d] for d in kept])
        inner = self._trial(value, dims).innermost
        # Summed in a variable, or into several elements at a time if these are neighbors.
        total = "" if inner in kept and gone else "sum"
        outer, last = [d for d in kept if total or d != inner], [d for d in kept if not total and d == inner]
        nest = Nest(value.shape, [*outer, *_last(gone, inner), *last])
        name = self._load(nest, value, nest.index)
        to = f"{result.base.pointer}[{address(out, [nest.index[d] for d in kept])}]"
        is_sum = node.target is not _aten.amax.default
        first, into = ("0" if is_sum else "-__builtin_inf()"), total or to
        step = f"{into} += {name};" if is_sum else f"{into} = {name} > {into} || {name} != {name} ? {name} : {into};"
        if not total:
            self.lines += [_filled(result, first), nest.lines(step)]
            return result
        clauses = "reduction(+:sum)" if is_sum and gone else None
        around = f"{'double' if is_sum else value.base.kind} sum = {first};", f"{to} = sum;"
        self.lines.append(nest.lines(step, simd=clauses, within=len(kept), around=around))
        return result

    def _product(self, node: fx.Node, a: Value, b: Value) -> Value:
        """A product of two matrices; the second and the result have rows of whole vectors."""
        (rows, inner), columns = a.shape, b.shape[1]
        if rows * inner * columns > _LARGEST_PRODUCT:
            raise NotExpressibleError(f"a product of {tuple(a.shape)} and {tuple(b.shape)} is left to a library")
        self._store(a.base)
        width = -(-columns * node.meta["dtype"].itemsize // _ALIGNMENT) * _ALIGNMENT // node.meta["dtype"].itemsize
        packed, result = (Value(Base(node, kind_of(node)), torch.empty(n, width)[:, :columns]) for n in (inner, rows))
        for value, count in ((packed, inner), (result, rows)):
            self._allocate(value.base, count * width)
        self._write(b, packed.base.pointer, packed.layout)
        first = f"{a.base.pointer} + {a.layout.storage_offset()}, {a.layout.stride(0)}, {a.layout.stride(1)}"
        sizes = f"{rows}, {inner}, {width}"
        self.lines.append(f"product({first}, {packed.base.pointer}, {result.base.pointer}, {sizes});")
        return result

    def _scatter(self, result: Value, dim: int, index_node: fx.Node, node: fx.Node) -> None:
        index, value = self._values[index_node], self._values[node]
        nest = Nest(index.shape, [d for d, size in enumerate(index.shape) if size > 1])
        place = self._load(nest, index, nest.index)
        name = self._load(nest, value, nest.index)
        to = [place if d == dim % len(nest.index) else i for d, i in enumerate(nest.index)]
        self.lines.append(nest.lines(f"{result.base.pointer}[{address(result.layout, to)}] += {name};", simd=None))

    def _trial(self, value: Value, dims: Sequence[int]) -> Nest:
        """A nest that is not written, for what it notes."""
        nest = Nest(value.shape, dims)
        self._load(nest, value, nest.index)
        return nest

    def _load(self, nest: Nest, value: Value, index: Sequence[str]) -> str:
        """The name of one element."""
        base = value.base
        if base.pointer:
            place = address(value.layout, index)
            used = [i for i, stride in zip(index, value.layout.stride(), strict=True) if stride]
            if (base, place) not in nest.names:
                nest.read(value.layout, index)
            return nest.define((base, place), base.kind, f"{base.pointer}[{place}]", used)
        dims = value.dims_of_base() or []
        at = ["0" if d is None else index[d] for d in dims]
        if (base, *at) not in nest.names:
            expression = self._expression(nest, base.node, at)
            return nest.define((base, *at), base.kind, expression, at)
        return nest.names[base, *at]

    def _expression(self, nest: Nest, node: fx.Node, at: Sequence[str]) -> str:
        """What one element of a formula is."""
        kind = kind_of(node)
        if node.target is _aten.gather.default:
            nest.is_flat = False
            args: Any = node.args
            table, place = self._values[args[0]], self._load(nest, self._values[args[2]], at)
            where = [place if d == args[1] % len(at) else i for d, i in enumerate(at)]
            return f"{table.base.pointer}[{address(table.layout, where)}]"
        operands = [v.base.kind for v in _tensors(node, self._values)]
        compared = max(operands, key=list(KINDS.values())[::-1].index) if kind == "bool" else kind
        words = []
        for argument in (*node.args, *DEFAULTS.get(node.target, ())[len(node.args) :]):
            if not isinstance(argument, fx.Node):
                words.append(literal(argument, compared))
                continue
            value = self._values[argument]
            shift = len(at) - len(value.shape)
            name = self._load(nest, value, ["0" if n == 1 else at[d + shift] for d, n in enumerate(value.shape)])
            words.append(name if value.base.kind in (compared, "bool") else f"({compared}){name}")
        named = {name: literal(node.kwargs.get(name, 1), compared) for name in ("alpha", "value")}
        return _template(node).format(*words, f="f" if compared == "float" else "", **named)


def _template(node: fx.Node) -> str:
    """The expression of an elementwise operation, empty for others."""
    return power(node.args[1]) if node.target is _aten.pow.Tensor_Scalar else EXPRESSIONS.get(node.target, "")


def _tensors(node: fx.Node, values: dict[fx.Node, Any]) -> Iterator[Value]:
    return (values[argument] for argument in node.args if isinstance(argument, fx.Node))


def _uses(node: fx.Node) -> int:
    """How often a result is used, directly or through views."""
    return sum(_uses(user) if user.target in VIEWS else 1 for user in node.users)


def _last(dims: Sequence[int], inner: int | None) -> list[int]:
    """The dimensions with one of them put last."""
    return sorted(dims, key=lambda d: d == inner)


def _filled(value: Value, number: str) -> str:
    size = math.prod(value.shape)
    return f"for (long i = 0; i < {size}; ++i) {value.base.pointer}[i] = {number};"
