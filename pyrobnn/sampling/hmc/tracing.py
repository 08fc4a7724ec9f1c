r"""A function of tensors recorded once as a graph of plain tensor operations.

The graph (an ``fx.GraphModule``) holds what the function did at one set of inputs: gradients are already operations
like any other, Python and Pyro are gone, and what does not depend on the inputs was computed once and kept. It runs as
it is, without autograd, and is what compilers understand best. Shapes, dtypes and devices of the inputs may not change,
and the function must not branch on their values.

Operators are seen where they are computed, below autograd, ``torch.func.vmap`` and functionalization, which turns
writing in place into computing anew, so that keeping constants is safe. ``torch.fx.experimental.proxy_tensor.make_fx``
would do the same; it imports torch's compiler, which takes a second.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from pyrobnn.core.torch_compat import OperatorMode, from_functional, functionalized, to_functional

__all__ = ["DIRECT", "FUSIBLE", "product", "trace"]

_aten = torch.ops.aten
_BY_SHAPE = {
    _aten.ones_like.default,
    _aten.zeros_like.default,
    _aten.full_like.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
}
_SAME = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh_copy.default}
_SAME_SHAPE = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.expand.default,
    _aten.reshape.default,
    _aten.slice.Tensor,
    _aten.slice_backward.default,
}


DIRECT: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
    _aten._unsafe_view.default: Tensor.view,
    _aten.addmm.default: torch.addmm,
    _aten.bmm.default: torch.bmm,
    _aten.cat.default: torch.cat,
    _aten.div.Tensor: torch.div,
    _aten.dot.default: torch.dot,
    _aten.exp.default: torch.exp,
    _aten.expand.default: Tensor.expand,
    _aten.log.default: torch.log,
    _aten.mm.default: torch.mm,
    _aten.mul.Scalar: torch.mul,
    _aten.mul.Tensor: torch.mul,
    _aten.neg.default: torch.neg,
    _aten.pow.Tensor_Scalar: torch.pow,
    _aten.relu.default: torch.relu,
    _aten.rsub.Scalar: torch.rsub,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.split_with_sizes.default: torch.split_with_sizes,
    _aten.sub.Tensor: torch.sub,
    _aten.sum.default: torch.sum,
    _aten.sum.dim_IntList: torch.sum,
    _aten.t.default: torch.t,
    _aten.tanh.default: torch.tanh,
    _aten.transpose.int: torch.transpose,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.view.default: Tensor.view,
}
"""Functions that take the arguments of operators and do the same: the same kernels, a microsecond less each."""


def trace(
    function: Callable[..., Any],
    *examples: Tensor,
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
    vectorizable: bool = False,
) -> fx.GraphModule | None:
    """The graph of a function of tensors.

    Args:
        function: From tensors to tensors; deterministic.
        *examples: Inputs to record it with.
        decompositions: For a compiler: what to record in place of operators, unless it returns ``NotImplemented``.
            None: the graph is to run as it is.
        vectorizable: Write views so that they are possible whatever the strides, for ``torch.func.vmap`` of the graph.

    Returns:
        The graph, or None if the function cannot be recorded: it needs the value of a tensor, say.
    """
    recorder = _Recorder(decompositions or {})
    try:
        with torch.no_grad(), recorder, functionalized():
            results = function(*(to_functional(recorder.placed(example)) for example in examples))
            results = map_aggregate(results, lambda leaf: from_functional(leaf) if isinstance(leaf, Tensor) else leaf)
    except (RuntimeError, NotImplementedError, TypeError):  # whatever is really wrong shows when the function runs
        return None
    graph = recorder.graph
    graph.output(map_aggregate(results, recorder.node))
    _drop_identities(graph)
    _drop_repetitions(graph)
    if decompositions is None:
        _replace(graph, DIRECT)
    if vectorizable:
        _replace(graph, dict.fromkeys((Tensor.view, _aten.view.default, _aten._unsafe_view.default), torch.reshape))
    graph.eliminate_dead_code()
    return fx.GraphModule(recorder.constants, graph)


class _Recorder(OperatorMode):
    """Writes down the operators that depend on inputs.

    Args:
        decompositions: What to compute in place of an operator, unless it returns ``NotImplemented``.

    Attributes:
        graph: What was recorded.
        constants: Tensors it needs, by name.
    """

    def __init__(self, decompositions: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.decompositions = decompositions
        self.graph = fx.Graph()
        self.constants: dict[str, Any] = {}
        self._nodes: dict[int, fx.Node] = {}
        self._kept: list[Tensor] = []  # alive, so that no other tensor has their identity

    def placed(self, example: Tensor) -> Tensor:
        """A new input like ``example``."""
        tensor = example.detach().clone()
        self._set(tensor, self.graph.placeholder(f"input_{len(self._kept)}"))
        return tensor

    def node(self, value: Any) -> Any:
        """The node of a tensor, which is a constant if it does not depend on inputs; other values are unchanged."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = _copied(value)
            self._set(value, self.graph.get_attr(name))
        return self._nodes[id(value)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.decompositions:
            with self:
                result = self.decompositions[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if not self._depends(func, args, kwargs):
            return result
        if not isinstance(result, Tensor | tuple | list) or _has_shape_of_values(func, args, self._is_input):
            raise RuntimeError(f"{func} asks for values of the inputs")
        node = self.graph.call_function(func, map_aggregate(args, self.node), map_aggregate(kwargs, self.node))
        if isinstance(result, Tensor):
            self._set(result, node)
            return result
        for index, part in enumerate(result):
            if isinstance(part, Tensor):
                self._set(part, self.graph.call_function(operator.getitem, (node, index)))
        return result

    def _depends(self, func: Any, args: Any, kwargs: Any) -> bool:
        if torch.Tag.nondeterministic_seeded in func.tags:
            return True
        found: list[bool] = []
        map_aggregate((args, kwargs), lambda leaf: found.append(self._is_input(leaf)))
        return func not in _BY_SHAPE and any(found)

    def _is_input(self, value: Any) -> bool:
        """Whether it is a tensor that depends on inputs."""
        node = self._nodes.get(id(value)) if isinstance(value, Tensor) else None
        return node is not None and node.op != "get_attr"

    def _set(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._kept.append(tensor)
        node.meta |= {"shape": tensor.shape, "dtype": tensor.dtype}


def _copied(tensor: Tensor) -> Tensor:
    """A copy that repeats nothing: dimensions of stride 0 stay so."""
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
    return tensor.detach()[once].clone().expand(tensor.shape)


def _has_shape_of_values(func: Any, args: tuple[Any, ...], is_input: Callable[[Any], bool]) -> bool:
    """Whether the result's shape depends on values of inputs, as that of ``x[x > 0]``."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    if func is not _aten.index.Tensor:
        return True
    return any(is_input(index) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a [..., n, k] @ b [..., k, m]`` if one of n, k and m is 1."""
    if a.shape[-1] == 1:
        return a * b
    if b.shape[-1] == 1:
        return (a * b.transpose(-1, -2)).sum(-1, keepdim=True)
    if a.shape[-2] == 1:
        return (a.transpose(-1, -2) * b).sum(-2, keepdim=True)
    return NotImplemented


def _affine(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``c + a @ b``, of which the product is fused where it can be."""
    found = product(a, b)
    return NotImplemented if found is NotImplemented or alpha != 1 or beta != 1 else c + found


FUSIBLE: dict[Any, Callable[..., Tensor]] = {
    _aten.mm.default: product,
    _aten.bmm.default: product,
    _aten.addmm.default: _affine,
    _aten.baddbmm.default: _affine,
}
"""Products with a vector as elementwise operations and sums, which a compiler joins with what is around them: in small
networks calls to a library would take longer than the products themselves."""


def _drop_identities(graph: fx.Graph) -> None:
    """Takes out operations that return what they are given."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        same = node.target in _SAME or (node.target in _SAME_SHAPE and node.meta["shape"] == source.meta["shape"])
        if node.target is _aten.t.default and source.target is _aten.t.default:  # transposed and back
            node.replace_all_uses_with(source.args[0])
            graph.erase_node(node)
        elif same or (node.target is _aten.pow.Tensor_Scalar and node.args[1] == 1):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _drop_repetitions(graph: fx.Graph) -> None:
    """Computes once what is computed twice."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        first = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _replace(graph: fx.Graph, functions: Mapping[Any, Callable[..., Any]]) -> None:
    """Calls other functions, of the same arguments."""
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = functions.get(node.target, node.target)
