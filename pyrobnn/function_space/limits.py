"""The walk over a network's layers that makes its limit: what each layer does to second moments, or why it has none.

The network is traced once (:mod:`torch.fx`). Values are a pair of inputs until the first layer of weights, second
moments (:class:`~pyrobnn.function_space.covariances.Hidden`) after it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyrobnn.function_space.covariances import (
    CONVOLUTIONS,
    Hidden,
    activated,
    convolved,
    flattened,
    pooled,
    summed,
    weighted,
)
from pyrobnn.function_space.dual import DualActivation
from pyrobnn.function_space.tracing import DROPOUTS, PREFIX, activation_of, traced

__all__ = ["Limit"]

_POOLS = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)
_PASSED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class _Inputs:
    """The two sets of inputs, before the first layer of weights."""

    first: Tensor
    second: Tensor


class Limit:
    """Second moments of a network's outputs at pairs of inputs.

    Args:
        network: The plain network.
        scales: Prior standard deviation by parameter.
        activations: Further elementwise modules.
        tangent: Whether the neural tangent kernel is the result.
    """

    def __init__(
        self,
        network: nn.Module,
        scales: Mapping[str, Tensor],
        activations: Mapping[type[nn.Module], DualActivation],
        *,
        tangent: bool,
    ) -> None:
        self.network, self.scales, self.activations, self.tangent = network, scales, activations, tangent
        self.graph, self.modules = traced(network, tuple(activations))
        self.all_pairs = any(isinstance(module, _POOLS) for module in self.modules.values())

    def __call__(self, x1: Tensor, x2: Tensor, *, paired: bool = False) -> Tensor:
        """``[N1, N2]``, or ``[N]`` if rows are paired."""
        first, second = x1.double(), x2.double()
        values: dict[fx.Node, Any] = {}
        used: set[str] = set()
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = _Inputs(first, second)
            elif node.op == "output":
                return self._result(values.get(node.args[0], node.args[0]))
            else:
                values[node] = self._step(node, values, paired, used)
        raise ValueError("net: its trace has no output.")

    def under(self, scales: Mapping[str, Tensor]) -> Limit:
        """The same network under other prior standard deviations."""
        made = copy(self)
        made.scales = {**self.scales, **scales}
        return made

    def rows(self, x1: Tensor, x2: Tensor, max_bytes: int) -> int:
        """How many rows of ``x1`` are taken at a time."""
        return max(1, max_bytes // max(1, len(x2) * self.bytes_per_pair(x1)))

    def bytes_per_pair(self, x: Tensor) -> int:
        """Memory of a pair of inputs: about eight copies of a covariance; positions are at most those of the input."""
        convolves = any(isinstance(module, CONVOLUTIONS) for module in self.modules.values())
        positions = x[:1].flatten(2).shape[-1] if convolves and x.dim() > 2 else 1
        return 8 * 8 * (positions**2 if self.all_pairs else positions)

    # --------------------------------------------------------------------------------------------- layers

    def _step(self, node: fx.Node, values: Mapping[fx.Node, Any], paired: bool, used: set[str]) -> Any:
        inputs = [values[argument] for argument in node.all_input_nodes]
        if node.op == "get_attr":
            raise ValueError(f"net: it uses its tensor {node.target!r} outside a layer, so that it has no known limit.")
        layer = self.modules[node.target] if node.op == "call_module" else None  # type: ignore[index]
        name = (
            str(node.target).removeprefix(f"{PREFIX}.")
            if layer is not None
            else getattr(node.target, "__name__", str(node.target))
        )
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            if name in used:
                raise ValueError(f"net: the layer {name!r} is used twice; the limit of tied weights is another.")
            used.add(name)
            return self._weights(name, layer, inputs[0], paired)
        if all(isinstance(value, _Inputs) for value in inputs):
            return self._on_inputs(node, layer, name, values)
        if len(inputs) > 1:
            return self._sum(node, name, inputs)
        hidden = inputs[0]
        if isinstance(layer, _PASSED) or node.target in (*DROPOUTS, "contiguous"):
            return hidden
        if isinstance(layer, nn.Flatten) or node.target in (torch.flatten, "flatten"):
            return self._flatten(hidden, node, layer, name)
        if isinstance(layer, _POOLS):
            return self._pool(hidden, layer, name)
        dual = activation_of(node, layer, self.activations)
        if dual is None:
            raise ValueError(self._refusal(name, layer))
        if not hidden.is_gaussian:
            raise ValueError(
                f"net: {name!r} follows another activation or a pooling, whose outputs are not Gaussian; put a layer "
                "of weights between them."
            )
        return activated(hidden, dual)

    def _weights(self, name: str, layer: nn.Module, value: _Inputs | Hidden, paired: bool) -> Hidden:
        assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        scale = self._scale(name, "weight")
        bias = self._scale(name, "bias").square() if layer.bias is not None else scale.new_zeros(())
        if isinstance(layer, CONVOLUTIONS):
            if layer.groups != 1 or layer.padding_mode != "zeros":
                raise ValueError(
                    f"net: {name!r} has groups={layer.groups} and padding_mode={layer.padding_mode!r}; the limit is "
                    "known for one group and zeros."
                )
            units = layer.in_channels
        else:
            units = layer.in_features
        if isinstance(value, _Inputs):
            hidden = self._first(layer, name, value, paired)
            gain = scale.square()  # the inputs' products are sums already
        else:
            hidden, gain = value, units * scale.square()
            if isinstance(layer, nn.Linear) and hidden.positions:
                if not hidden.flat:
                    raise ValueError(
                        f"net: {name!r} acts at each position of a convolution; flatten or pool before it."
                    )
                hidden = flattened(hidden)
        if isinstance(layer, CONVOLUTIONS):
            if hidden.flat or not hidden.positions:
                raise ValueError(f"net: the convolution {name!r} follows vectors.")
            hidden = convolved(hidden, layer)
        return weighted(hidden, gain, bias, name)

    def _first(self, layer: nn.Module, name: str, value: _Inputs, paired: bool) -> Hidden:
        """Products of the inputs, summed over features or channels."""
        first, second = value.first, value.second
        if isinstance(layer, nn.Linear):
            if first.dim() != 2:
                raise ValueError(
                    f"net: {name!r} is given inputs of shape {list(first.shape)}; the limit of a layer at each "
                    "position is known for convolutions only; flatten the inputs."
                )
            own = first.square().sum(-1), second.square().sum(-1)
            cross = (first * second).sum(-1) if paired else first @ second.mT
            moments, positions, all_pairs = (cross, *own), 0, False
        else:
            d = first.dim() - 2
            if self.all_pairs:
                moments = (
                    _products(first, second, paired=paired),
                    _products(first, first, paired=True),
                    _products(second, second, paired=True),
                )
            else:
                cross = (first * second).sum(1) if paired else torch.einsum("ic...,jc...->ij...", first, second)
                moments = cross, first.square().sum(1), second.square().sum(1)
            positions, all_pairs = d, self.all_pairs
        zeros = tuple(torch.zeros_like(k) for k in moments) if self.tangent else None
        return Hidden(moments, zeros, paired, positions, all_pairs)  # type: ignore[arg-type]

    def _on_inputs(self, node: fx.Node, layer: nn.Module | None, name: str, values: Mapping[fx.Node, Any]) -> _Inputs:
        """Runs what comes before the first weights on the inputs themselves."""
        if layer is not None and next(layer.parameters(), None) is not None:
            raise ValueError(self._refusal(name, layer))
        if node.target in DROPOUTS:
            passed: _Inputs = values[node.all_input_nodes[0]]
            return passed
        found = []
        for side in ("first", "second"):

            def known(argument: fx.Node, side: str = side) -> Tensor:
                value: Tensor = getattr(values[argument], side)
                return value

            args, kwargs = fx.map_arg(node.args, known), fx.map_arg(node.kwargs, known)
            if layer is not None:
                found.append(value_of(layer, args, kwargs))
            elif node.op == "call_method":
                found.append(getattr(args[0], str(node.target))(*args[1:], **kwargs))
            else:
                found.append(node.target(*args, **kwargs))  # type: ignore[operator]
        return _Inputs(*found)

    def _sum(self, node: fx.Node, name: str, inputs: list[Any]) -> Hidden:
        if node.target not in (operator.add, operator.iadd, torch.add, "add", "add_") or len(node.args) != 2:
            raise ValueError(f"net: {name!r} joins two branches; the limit is known for sums.")
        if node.kwargs:
            raise ValueError(
                f"net: {name!r} is a sum with {', '.join(node.kwargs)}=; the limit is known for plain sums: scale the "
                "prior of a branch's last layer instead."
            )
        if not all(isinstance(value, Hidden) and value.is_gaussian for value in inputs):
            raise ValueError("net: a sum of branches has a limit where each branch ends in a layer of weights.")
        if inputs[0].sources & inputs[1].sources:
            raise ValueError("net: a sum of branches that share their last layer of weights has another limit.")
        if inputs[0].positions != inputs[1].positions or inputs[0].flat != inputs[1].flat:
            raise ValueError("net: a sum of a vector and an image has no limit here.")
        return summed(inputs[0], inputs[1])

    def _flatten(self, hidden: Hidden, node: fx.Node, layer: nn.Module | None, name: str) -> Hidden:
        if isinstance(layer, nn.Flatten):
            start, end = layer.start_dim, layer.end_dim
        else:
            given = [*node.args[1:], *(node.kwargs[key] for key in ("start_dim", "end_dim") if key in node.kwargs)]
            start, end = [*given, *(0, -1)[len(given) :]][:2]  # type: ignore[assignment]
        if start != 1 or end not in (-1, hidden.positions + 1):
            raise ValueError(
                f"net: {name!r} flattens dimensions {start} to {end}; all but the rows (1 to -1) have a limit."
            )
        return replace(hidden, flat=hidden.positions > 0)

    def _pool(self, hidden: Hidden, layer: nn.Module, name: str) -> Hidden:
        if not hidden.positions or hidden.flat:
            raise ValueError(f"net: {name!r} pools vectors; it needs positions.")
        return pooled(hidden, layer)

    def _result(self, value: Any) -> Tensor:
        if not isinstance(value, Hidden) or not value.is_gaussian or value.positions:
            raise ValueError(
                "net: its outputs are Gaussian in the limit if its last layer is one of weights that returns vectors; "
                "leave softmax and the like to the likelihood."
            )
        return value.moments[0] if value.tangents is None else value.tangents[0]

    def _scale(self, layer: str, kind: str) -> Tensor:
        name = kind if layer == PREFIX else f"{layer}.{kind}"
        if name not in self.scales:
            raise ValueError(
                f"net: the parameter {name!r} has no prior (it is deterministic, or tied to another), so its layer has "
                "no limit; give it a Normal prior."
            )
        return self.scales[name].to(torch.float64)

    @staticmethod
    def _refusal(name: str, layer: nn.Module | None) -> str:
        kind = "function" if layer is None else type(layer).__name__
        return (
            f"net: {name!r} ({kind}) has no Gaussian limit that is known here: normalization couples units, maxima, "
            "attention and recurrence have no such recursion. Use average pooling, leave normalization out, or pass "
            "activations={class: DualActivation} for an elementwise module."
        )


def value_of(layer: nn.Module, args: Any, kwargs: Any) -> Tensor:
    """What a layer without parameters makes of inputs, dropout off."""
    if isinstance(layer, _PASSED):
        found: Tensor = args[0]
        return found
    result = layer(*args, **kwargs)
    assert isinstance(result, Tensor)
    return result


def _products(first: Tensor, second: Tensor, *, paired: bool) -> Tensor:
    """Sums over channels at all pairs of positions, ``[..., *positions, *positions]``."""
    shape = first.shape[2:]
    equation = "icp,icq->ipq" if paired else "icp,jcq->ijpq"
    found = torch.einsum(equation, first.flatten(2), second.flatten(2))
    return found.reshape(*found.shape[:-2], *shape, *shape)
