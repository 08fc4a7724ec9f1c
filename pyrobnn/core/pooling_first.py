r"""Maximum pooling before the ReLU in recorded graphs.

.. math::  \mathrm{maxpool}(\mathrm{relu}(x)) = \mathrm{relu}(\mathrm{maxpool}(x)),

gradients included: where a window has a positive maximum, both take the same element of it, and elsewhere the ReLU's
gradient is zero. Compiled kernels of the left side compute the ReLU again for each window, which takes three times as
long as the right side on a processor; and the right side has a ReLU of a quarter of the elements.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

__all__ = ["pool_first"]

_aten = torch.ops.aten
_SAME = {_aten.alias.default, _aten.detach.default}
_RELU = {_aten.relu.default, _aten.relu_.default}


@dataclass
class _Pair:
    """A ReLU and the pooling of its result, each with its gradient if there is one."""

    relu: fx.Node
    pool: fx.Node
    pool_backward: fx.Node | None = None
    relu_backward: fx.Node | None = None


def pool_first(graph: fx.GraphModule) -> int:
    """Exchanges ReLUs with the maximum pooling that follows; returns how many there were."""
    pairs = [pair for node in graph.graph.nodes if (pair := _pair(node)) is not None]
    for pair in pairs:
        _exchange(graph.graph, pair)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return len(pairs)


def _pair(relu: fx.Node) -> _Pair | None:
    """The pair that a ReLU begins, if nothing else uses its result or the indices of the pooling."""
    if relu.op != "call_function" or relu.target not in _RELU:
        return None
    if relu.target is _aten.relu_.default and len(relu.args[0].users) > 1:  # type: ignore[union-attr]
        return None
    by_kind: dict[object, list[fx.Node]] = {}
    for user in _users(relu):
        by_kind.setdefault(user.target, []).append(user)
    pools = by_kind.pop(_aten.max_pool2d_with_indices.default, [])
    pools_backward = by_kind.pop(_aten.max_pool2d_with_indices_backward.default, [])
    relus_backward = by_kind.pop(_aten.threshold_backward.default, [])
    if by_kind or len(pools) != 1 or len(pools_backward) > 1 or len(relus_backward) != len(pools_backward):
        return None
    pair = _Pair(relu, pools[0], *pools_backward, *relus_backward)
    indices = [user for user in pair.pool.users if user.target is operator.getitem and user.args[1] == 1]
    if any(user is not pair.pool_backward for node in indices for user in _users(node)):
        return None
    if pair.pool_backward is not None and list(_users(pair.pool_backward)) != [pair.relu_backward]:
        return None
    return pair


def _exchange(graph: fx.Graph, pair: _Pair) -> None:
    pool, before = pair.pool, pair.relu.args[0]
    pair.relu.target = _aten.relu.default  # dead code from here on, which is kept if it writes
    pool.args = (before, *pool.args[1:])
    values = next(user for user in pool.users if user.target is operator.getitem and user.args[1] == 0)
    with graph.inserting_after(values):
        relu = graph.call_function(_aten.relu.default, (values,))
    relu.meta = dict(values.meta)
    values.replace_all_uses_with(relu, delete_user_cb=lambda user: user is not relu)
    if pair.pool_backward is None or pair.relu_backward is None:
        return
    gradient, _, *rest = pair.pool_backward.args
    with graph.inserting_before(pair.pool_backward):
        masked = graph.call_function(_aten.threshold_backward.default, (gradient, relu, *pair.relu_backward.args[2:]))
    pair.pool_backward.args = (masked, before, *rest)
    pair.relu_backward.replace_all_uses_with(pair.pool_backward)
    graph.erase_node(pair.relu_backward)


def _users(node: fx.Node) -> Iterator[fx.Node]:
    """What uses a result, through nodes that return it as it is."""
    for user in node.users:
        if user.target in _SAME:
            yield from _users(user)
        else:
            yield user
