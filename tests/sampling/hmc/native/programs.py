"""Functions as compiled programs: a function of a vector, with results of any shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrobnn.sampling.hmc.native.compiled import CompiledPotential
from pyrobnn.sampling.hmc.native.operators import DECOMPOSITIONS
from pyrobnn.sampling.hmc.tracing import trace


def computed(function: Callable[[Tensor], list[Tensor]], x: Tensor) -> list[Tensor]:
    """What loops in C++ make of a function's results."""
    size = sum(result.numel() for result in function(x))

    def padded(flat: Tensor) -> tuple[Tensor, Tensor]:
        results = [result.reshape(-1).to(x.dtype) for result in function(flat[: len(x)])]
        return results[0].sum(), torch.cat([*results, flat[size:]] if len(flat) > size else results)

    flat = torch.cat([x, x.new_zeros(max(size - len(x), 0))])
    graph = trace(padded, flat, decompositions=DECOMPOSITIONS)
    assert graph is not None
    _, found = CompiledPotential(graph).value_and_grad(flat.unsqueeze(0))
    parts = found[0, :size].split([result.numel() for result in function(x)])
    return [part.view(result.shape) for part, result in zip(parts, function(x), strict=True)]


def assert_computed(function: Callable[[Tensor], list[Tensor]], x: Tensor) -> None:
    """Loops compute what torch does."""
    for index, (found, known) in enumerate(zip(computed(function, x), function(x), strict=True)):
        torch.testing.assert_close(
            found, known.to(x.dtype), equal_nan=True, msg=lambda text, i=index: f"result {i}: {text}"
        )
