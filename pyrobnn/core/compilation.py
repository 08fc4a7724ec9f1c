"""Functions of tensors recorded as graphs and compiled by ``torch.compile``.

:func:`record` runs a function once and keeps what it did to tensors: Python and Pyro are gone from the graph, and
gradients are operations like any other. :func:`compiled` gives it to the compiler.
"""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, fx, nn

from pyrobnn.core.handlers import validation_enabled

__all__ = ["NotRecordableError", "compiled", "first_line", "has_compiler", "prefers_channels_last", "record"]

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
    from torch.fx.experimental.proxy_tensor import make_fx  # takes a tenth of a second

    before = _python_random()
    try:
        graph = make_fx(function)(*inputs)
    except Exception as error:  # torch raises all kinds
        raise NotRecordableError(first_line(error)) from error
    if _python_random() != before:
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
    options: dict[str, Any] = {"fallback_random": True}
    if device.type == "cpu":
        options["layout_optimization"] = False
    try:
        function: Callable[..., Any] = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    except RuntimeError:  # another version of torch lacks an option
        function = torch.compile(graph, fullgraph=True, dynamic=False)

    is_first = True

    def run(*inputs: Tensor) -> Any:
        nonlocal is_first
        with torch.no_grad():
            if not is_first:
                return function(*inputs)
            is_first = False
            # Compiling switches Pyro's validation off for good, and warns of what torch's own code uses.
            with validation_enabled(dist.is_validation_enabled()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function(*inputs)

    return run


def _python_random() -> tuple[Any, ...]:
    """The states of the random numbers that graphs do not hold."""
    state: Any = np.random.get_state()  # noqa: NPY002 (networks may draw from it)
    return random.getstate(), state[1].tobytes(), state[2:]


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
