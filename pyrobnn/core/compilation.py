"""Functions of tensors recorded as graphs and compiled by ``torch.compile``.

:func:`record` runs a function once and keeps what it did to tensors: Python and Pyro are gone from the graph, and
gradients are operations like any other. :func:`compiled` gives it to the compiler. Random numbers are drawn by torch
before the graph runs, in the order of the recording, so that a seed gives those of the function itself.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, fx, nn

from pyrobnn.core.first_line import first_line
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.pooling_first import pool_first

__all__ = [
    "NO_COMPILER",
    "NotRecordableError",
    "Recording",
    "compiled",
    "compiling",
    "has_compiler",
    "prefers_channels_last",
    "record",
    "warn_uncompiled",
]

NO_COMPILER = "there is no C++ compiler (such as g++; its path may be given as CXX)"
"""Why nothing is compiled where :func:`has_compiler` is false."""

_aten = torch.ops.aten
_BY_SHAPE = {_aten.rand_like.default, _aten.randn_like.default, _aten.bernoulli.p}
_EMPTY = {_aten.empty_like.default, _aten.empty.memory_format, _aten.new_empty.default}
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


@dataclass(frozen=True)
class Recording:
    """What a function did to tensors.

    Attributes:
        graph: The graph, from the function's inputs and the random numbers to a tuple of tensors.
        draws: Make the random numbers, in order.
    """

    graph: fx.GraphModule
    draws: list[Callable[[], Tensor]]


def record(function: Callable[..., Any], inputs: Iterable[Tensor], fixed: Iterable[Tensor] = ()) -> Recording:
    """Records a function of tensors, which may write to them.

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
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
            raise NotRecordableError(f"the shape of a tensor depends on values ({node.target})")
    return Recording(graph, _lifted(graph))


@contextmanager
def compiling() -> Iterator[None]:
    """Surrounds what makes ``torch.compile`` compile.

    It switches Pyro's validation off for good, which is put back, and warns of what torch's own code uses.
    """
    with validation_enabled(dist.is_validation_enabled()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compiled(recording: Recording, *, device: torch.device) -> Callable[..., Any]:
    """The recording as code that is compiled at its first call; the layout of images stays that of the recording."""
    pool_first(recording.graph)
    options: dict[str, Any] = {"fallback_random": True}
    if device.type == "cpu":
        options["layout_optimization"] = False
    try:
        function: Callable[..., Any] = torch.compile(recording.graph, fullgraph=True, dynamic=False, options=options)
    except RuntimeError:  # another version of torch lacks an option
        function = torch.compile(recording.graph, fullgraph=True, dynamic=False)
    is_first = True

    def run(*inputs: Tensor) -> Any:
        nonlocal is_first
        with torch.no_grad():
            drawn = [draw() for draw in recording.draws]
            if not is_first:
                return function(*inputs, *drawn)
            is_first = False
            with compiling():
                return function(*inputs, *drawn)

    return run


def _lifted(graph: fx.GraphModule) -> list[Callable[[], Tensor]]:
    """Makes inputs of the random numbers that depend on shapes alone: a compiler may change the order of draws."""
    draws: list[Callable[[], Tensor]] = []
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        sources = node.all_input_nodes
        like = sources[0].meta["val"] if sources else None
        is_shape_alone = len(sources) <= 1 and (not sources or node.target in _BY_SHAPE or sources[0].target in _EMPTY)
        if not is_shape_alone or not isinstance(node.meta["val"], Tensor):
            continue
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"random_{len(draws)}")
        last.meta["val"] = node.meta["val"]
        draws.append(functools.partial(_draw, node.target, node.args, dict(node.kwargs), like))
        written = sources[0] if sources and sources[0].target in _EMPTY else None
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
        if written is not None:
            written.replace_all_uses_with(last)
    graph.recompile()
    return draws


def _draw(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: Tensor | None) -> Tensor:
    """The random numbers of an operator, into new memory."""
    if like is None:
        return operator(*args, **kwargs)
    memory = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    return operator(*(memory if isinstance(argument, fx.Node) else argument for argument in args), **kwargs)


def _python_random() -> tuple[Any, ...]:
    """The states of the random numbers that graphs do not hold."""
    state: Any = np.random.get_state()  # noqa: NPY002 (networks may draw from it)
    return random.getstate(), state[1].tobytes(), state[2:]


def warn_uncompiled(what: str, reason: str) -> None:
    """Warns that something runs uncompiled although ``compile=True`` asked for more."""
    warnings.warn(
        f"compile: {what} uncompiled, because {reason}. It gives the same, at the usual speed; compile=False says so.",
        stacklevel=3,
    )
