"""A network compiled as a function of weights and inputs, so that all draws of a prediction run the same code.

The network is recorded once for inputs of a shape (:mod:`pyrobnn.core.compilation`), with the weights and its other
tensors as inputs of the graph, and compiled by ``torch.compile``. In each prediction the first outputs are compared
with those of the network itself, and a network that was changed is recorded anew. A shorter last batch runs uncompiled,
as it would need a graph of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyrobnn.core import compilation
from pyrobnn.core.first_line import first_line
from pyrobnn.core.pyro_compat import has_forward_hooks
from pyrobnn.model.supervised import run_network

__all__ = ["CompiledNetwork"]

_GRAPHS = 4  # of a network; inputs of further shapes run uncompiled


class _Form(NamedTuple):
    """What a graph is for; None in place of a graph where there is none."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_autocast: bool


_programs: weakref.WeakKeyDictionary[nn.Module, dict[_Form, Callable[..., Any] | None]] = weakref.WeakKeyDictionary()


class CompiledNetwork:
    """Runs of a network by compiled code where that can be, else by the network, with one warning.

    Args:
        network: The plain network, in evaluation mode.

    Attributes:
        reason: Why runs are uncompiled; None as long as they are compiled.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.reason: str | None = None
        self._compared: set[_Form] = set()
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        if not compilation.has_compiler(device):
            self._fail(compilation.NO_COMPILER)
        elif has_forward_hooks(network):
            self._fail("the network has forward hooks, which compiled code does not call")

    def __call__(self, x: Any) -> Any:
        """What the network returns for the inputs, with the weights that it holds now."""
        if self.reason is not None or not isinstance(x, Tensor) or not x.dim():
            return run_network(self.network, x)
        known = _programs.setdefault(self.network, {})
        kind = x.device.type
        form = _Form(tuple(x.shape), x.stride(), x.dtype, x.device, torch.is_autocast_enabled(kind))
        if form not in known:
            is_rest = any(other.shape[1:] == form.shape[1:] and form.shape < other.shape for other in known)
            if is_rest or len(known) >= _GRAPHS:
                return run_network(self.network, x)
            return self._start(x, known, form)
        program = known[form]
        if program is None:
            return run_network(self.network, x)
        if form in self._compared:
            return program(x, *self._tensors().values())
        wanted = run_network(self.network, x)
        if not self._agrees(program, x, wanted, form):  # the network was changed since it was recorded
            return self._start(x, known, form)
        self._compared.add(form)
        return wanted

    def _start(self, x: Tensor, known: dict[_Form, Callable[..., Any] | None], form: _Form) -> Any:
        """Records and compiles the network for inputs of a form; returns its own outputs."""
        wanted, tensors = run_network(self.network, x), self._tensors()
        names = tuple(tensors)

        def function(inputs: Tensor, *values: Tensor) -> Any:
            return functional_call(self.network, dict(zip(names, values, strict=True)), (inputs,), tie_weights=False)

        known[form] = None
        try:
            if not isinstance(wanted, Tensor):
                raise compilation.NotRecordableError("the network returns something else than one tensor")
            values = [value.detach().clone() for value in tensors.values()]
            graph = compilation.record(function, (x.clone(), *values), fixed=tensors.values())
            run = compilation.compiled(graph, device=x.device)
            if not self._agrees(run, x, wanted, form):
                raise compilation.NotRecordableError("compiled, it gives other numbers")
        except Exception as error:  # a compiler has many ways to fail
            self._fail(first_line(error))
        else:
            known[form] = run
            self._compared.add(form)
        return wanted

    def _agrees(self, program: Callable[..., Any], x: Tensor, wanted: Any, form: _Form) -> bool:
        """Whether the program computes what the network does, and leaves its input alone."""
        relative, absolute = _tolerance(form)
        kept, tensors = x.clone(), self._tensors()
        try:
            found = program(kept, *tensors.values())
            torch.testing.assert_close(found, wanted, rtol=relative, atol=absolute)
        except (AssertionError, TypeError, RuntimeError):  # also of weights that are others now
            return False
        return torch.equal(kept, x)

    def _tensors(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name, each once."""
        tensors: dict[str, Tensor] = dict(self.network.named_parameters())
        tensors.update(self.network.named_buffers())
        return tensors

    def _fail(self, reason: str) -> None:
        self.reason = reason
        compilation.warn_uncompiled("the network runs", reason)


def _tolerance(form: _Form) -> tuple[float, float]:
    """Relative and absolute: sums are in another order, and in half precision intermediate results are not rounded."""
    if form.is_autocast or form.dtype in (torch.float16, torch.bfloat16):
        return 5e-2, 5e-2
    return 1e-4, 1e-5
