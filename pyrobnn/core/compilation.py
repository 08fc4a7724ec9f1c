"""Functions of tensors recorded as graphs and compiled by ``torch.compile``.

:func:`record` runs a function once and keeps what it did to tensors: Python and Pyro are gone from the graph, gradients
are operations like any other. :func:`compiled` gives it to the compiler. Maximum pooling is kept as torch's own kernels:
those that the compiler makes of it took twice to three times as long on a processor.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyrobnn.core.handlers import validation_enabled

__all__ = ["NotRecordableError", "compiled", "first_line", "has_compiler", "prefers_channels_last", "record"]

_aten = torch.ops.aten
_VECTOR = 8  # channels from which on, in multiples, kernels over channels fill a processor's vectors


class NotRecordableError(RuntimeError):
    """A function cannot be recorded as a graph; the message says why."""


def has_compiler(device: torch.device) -> bool:
    """Whether ``torch.compile`` can be expected to find a compiler for the device."""
    if device.type == "cuda":
        return True  # Triton comes with torch
    names = ("cl",) if os.name == "nt" else (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")
    return any(shutil.which(name) for name in names)


def prefers_channels_last(net: nn.Module, device: torch.device) -> bool:
    """Whether compiled convolutions of a network run best with the channels of an image next to each other.

    On a processor, where there are enough channels in every convolution to fill a vector. (Measured: ResNet-20 takes
    0.7 times as long, and LeNet, with six channels, 1.2 times.)
    """
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    fills = all(module.out_channels % _VECTOR == 0 for module in convolutions)
    return device.type == "cpu" and bool(convolutions) and fills


def record(function: Callable[..., Any], inputs: Iterable[Tensor], fixed: Iterable[Tensor] = ()) -> fx.GraphModule:
    """The graph of a function of tensors, which may write to them.

    Args:
        function: From tensors to a tuple of tensors. What its Python code does besides happens once, now.
        inputs: Tensors to record it with; it does to them what it does.
        fixed: Tensors that it may not use but as inputs, such as the parameters that inputs stand for.

    Raises:
        NotRecordableError: If it needs the value of a tensor, draws random numbers outside of torch, or uses one of
            ``fixed``.
    """
    before = random.getstate(), np.random.get_state()[1:]  # noqa: NPY002 (networks may draw from it)
    try:
        graph = make_fx(function)(*inputs)
    except Exception as error:  # torch raises all kinds
        raise NotRecordableError(first_line(error)) from error
    if random.getstate() != before[0] or not _same_state(np.random.get_state()[1:], before[1]):  # noqa: NPY002
        raise NotRecordableError("it draws random numbers of Python's or NumPy's, which a graph would repeat")
    places = {tensor.data_ptr() for tensor in fixed if tensor.numel()}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and getattr(graph, str(node.target)).data_ptr() in places:
            raise NotRecordableError("it uses a parameter or buffer past the module that holds it")
    return graph


def compiled(graph: fx.GraphModule, *, device: torch.device) -> Callable[..., Any]:
    """The graph as compiled code, which is made at its first call.

    Random numbers are those that the graph would draw uncompiled. The layout of images is that of the recording.
    """
    _keep_pooling(graph)
    options: dict[str, Any] = {"fallback_random": True}
    if device.type == "cpu":
        options["layout_optimization"] = False
    try:
        function: Callable[..., Any] = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    except RuntimeError:  # another version of torch lacks an option
        function = torch.compile(graph, fullgraph=True, dynamic=False)

    def run(*inputs: Tensor) -> Any:
        # torch.compile switches Pyro's validation off for good when it compiles.
        with torch.no_grad(), validation_enabled(dist.is_validation_enabled()):
            return function(*inputs)

    return run


def _same_state(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# ------------------------------------------------------------------------------------------------ maximum pooling


@torch.library.custom_op("pyrobnn::max_pool2d", mutates_args=())
def _max_pool2d(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool
) -> tuple[Tensor, Tensor]:
    return _aten.max_pool2d_with_indices.default(x, kernel, stride, padding, dilation, ceil)


@torch.library.custom_op("pyrobnn::max_pool2d_backward", mutates_args=())
def _max_pool2d_backward(
    gradient: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil: bool,
    indices: Tensor,
) -> Tensor:
    operator = _aten.max_pool2d_with_indices_backward.default
    return operator(gradient, x, kernel, stride, padding, dilation, ceil, indices)


_max_pool2d.register_fake(_aten.max_pool2d_with_indices.default)
_max_pool2d_backward.register_fake(_aten.max_pool2d_with_indices_backward.default)


def _keep_pooling(graph: fx.GraphModule) -> None:
    """Puts operators that the compiler calls in place of those that it would write kernels for."""
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is _aten.max_pool2d_with_indices.default:
            x, kernel, stride, *rest = (*node.args, [])[: max(3, len(node.args))]
            defaults = [[0, 0], [1, 1], False]
            node.args = (x, kernel, stride or kernel, *rest, *defaults[len(rest) :])
            node.target = torch.ops.pyrobnn.max_pool2d.default
        elif node.target is _aten.max_pool2d_with_indices_backward.default:
            node.target = torch.ops.pyrobnn.max_pool2d_backward.default
    graph.recompile()
