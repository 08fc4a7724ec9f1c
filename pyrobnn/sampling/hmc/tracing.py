r"""A function of tensors recorded once as a graph of plain tensor operations.

The graph (an ``fx.GraphModule``) holds what the function did at one set of inputs: gradients are already operations
like any other, Python and Pyro are gone, and whatever does not depend on the inputs is computed once and kept. It runs
as it is, without autograd, and is what ``torch.compile`` understands best. Shapes, dtypes and devices of the inputs
may not change, and the function must not branch on their values.

Writing in place is turned into computing anew (:func:`torch.func.functionalize`), so that folding constants is safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["trace"]

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
    _aten.expand.default,
    _aten.reshape.default,
    _aten.slice.Tensor,
    _aten.slice_backward.default,
}


DIRECT: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
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
"""Functions that take the arguments of operators and do the same."""


def trace(function: Callable[..., Any], *examples: Tensor, fusible: bool = False) -> fx.GraphModule | None:
    """The graph of a function of tensors.

    Args:
        function: From tensors to tensors; deterministic.
        *examples: Inputs to record it with.
        fusible: Write products with a vector as elementwise operations and sums, which a compiler joins with what is
            around them; for small networks, calls to a library would take longer than the products themselves.

    Returns:
        The graph, or None if the function cannot be recorded: it needs the value of a tensor, say.
    """
    try:
        with torch.no_grad():
            decompositions = _FUSIBLE if fusible else {}
            recorded = make_fx(torch.func.functionalize(function), decomposition_table=decompositions)(*examples)
    except (RuntimeError, NotImplementedError, TypeError):  # whatever is really wrong shows when the function runs
        return None
    _fold_constants(recorded)
    _drop_identities(recorded)
    _drop_repetitions(recorded)
    if not fusible:
        _call_directly(recorded)
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


def _product(a: Tensor, b: Tensor) -> Tensor:
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
    product = _product(a, b)
    return NotImplemented if product is NotImplemented or alpha != 1 or beta != 1 else c + product


_FUSIBLE: dict[Any, Callable[..., Tensor]] = {
    _aten.mm.default: _product,
    _aten.bmm.default: _product,
    _aten.addmm.default: _affine,
    _aten.baddbmm.default: _affine,
}


@torch.no_grad()
def _fold_constants(recorded: fx.GraphModule) -> None:
    """Computes now what does not depend on the inputs."""
    known: dict[fx.Node, Any] = {}
    for node in list(recorded.graph.nodes):
        if node.op == "get_attr":
            known[node] = getattr(recorded, str(node.target)).detach()
            continue
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        if node.target in _BY_SHAPE:
            like = node.args[0].meta["val"]
            arguments = (torch.empty(like.shape, dtype=like.dtype, device=like.device), *node.args[1:])
        elif all(source in known for source in node.all_input_nodes):
            arguments = fx.map_arg(node.args, known.__getitem__)
        else:
            continue
        value = node.target(*arguments, **fx.map_arg(node.kwargs, known.__getitem__))
        if not isinstance(value, Tensor):  # several tensors: those that are used become constants themselves
            known[node] = value
            continue
        name = f"constant_{len(known)}"
        recorded.register_buffer(name, value.clone())
        with recorded.graph.inserting_before(node):
            constant = recorded.graph.get_attr(name)
        constant.meta = dict(node.meta)
        known[constant] = value
        node.replace_all_uses_with(constant)
        recorded.graph.erase_node(node)


def _drop_identities(recorded: fx.GraphModule) -> None:
    """Takes out operations that return what they are given."""
    for node in list(recorded.graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        same = node.target in _SAME or (
            node.target in _SAME_SHAPE and node.meta["val"].shape == source.meta["val"].shape
        )
        if node.target is _aten.t.default and source.target is _aten.t.default:  # transposed and back
            node.replace_all_uses_with(source.args[0])
            recorded.graph.erase_node(node)
        elif same or (node.target is _aten.pow.Tensor_Scalar and node.args[1] == 1):
            node.replace_all_uses_with(source)
            recorded.graph.erase_node(node)


def _drop_repetitions(recorded: fx.GraphModule) -> None:
    """Computes once what is computed twice."""
    seen: dict[Any, fx.Node] = {}
    for node in list(recorded.graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        first = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            recorded.graph.erase_node(node)


def _call_directly(recorded: fx.GraphModule) -> None:
    """Calls torch's functions in place of its operators: the same kernels, a microsecond less each."""
    for node in recorded.graph.nodes:
        if node.op == "call_function":
            node.target = DIRECT.get(node.target, node.target)
