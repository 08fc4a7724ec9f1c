"""Which module stops the gradient of the outputs with respect to the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.trees import leaves

__all__ = ["explain_missing_gradient", "module_of_zero_gradient"]


def explain_missing_gradient(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """A message that names the innermost module whose inputs have a gradient and whose outputs have none.

    Args:
        model: The model.
        run: The network under one draw.
        x: Inputs ``[N, ...]``.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if not found and _needs_gradient(args) and not _needs_gradient(output):
            found.append(f"its module {name!r} ({type(module).__name__})")

    handles = [
        module.register_forward_hook(lambda m, args, output, name=name: look(name, m, args, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.enable_grad():
            run(x.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    where = found[0] if found else "what it does outside of its modules"
    return (
        f"model: the outputs have no gradient with respect to the inputs; {where} stops it (argmax, integers, detach, "
        "NumPy or no_grad). Replace it by something differentiable, or use an attack without gradients."
    )


def module_of_zero_gradient(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    """The innermost module that has gradients at its outputs, but zeros at all of its inputs; None if none has.

    Args:
        model: The model.
        run: From inputs to a number whose gradient is zero, under one draw.
        x: Inputs ``[N, ...]``.
    """
    ends: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        before = [t for t in leaves(args) if isinstance(t, Tensor) and t.requires_grad]
        after = [t for t in leaves(output) if isinstance(t, Tensor) and t.requires_grad]
        if len(before) == 1 and len(after) == 1:
            ends.append((name, module, before[0], after[0]))

    handles = [
        module.register_forward_hook(lambda m, args, output, name=name: keep(name, m, args, output))
        for name, module in model.named_modules()
        if name and not any(module.children())
    ]
    try:
        with torch.enable_grad():
            total = run(x.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    for name, module, before, after in reversed(ends):
        slopes = torch.autograd.grad(total, [before, after], retain_graph=True, allow_unused=True)
        zero = [slope is None or not bool(slope.count_nonzero()) for slope in slopes]
        if zero == [True, False]:
            return f"{name!r} ({type(module).__name__})"
    return None


def _needs_gradient(values: Any) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in leaves(values))
