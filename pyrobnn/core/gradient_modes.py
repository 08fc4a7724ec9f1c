"""Gradients where they are needed, whatever block of ``no_grad`` or ``inference_mode`` the caller is in.

Without gradients a training step changes nothing but what the prior pulls, so what trains sets the modes itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["gradients_are_off", "gradients_enabled", "ordinary", "refuse_inference_tensors"]


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Ordinary tensors and gradients for the block; the previous modes are restored after it."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def gradients_are_off() -> bool:
    """Whether ``no_grad`` or ``inference_mode`` is on."""
    return not torch.is_grad_enabled() or torch.is_inference_mode_enabled()


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made under ``inference_mode``, which autograd cannot use."""
    return tensor.clone() if tensor.is_inference() else tensor


def refuse_inference_tensors(**modules: Any) -> None:
    """Refuses modules with tensors made under ``inference_mode``, which autograd cannot use.

    Args:
        **modules: By the name of the argument that they are; what is no module has no tensors to look for.

    Raises:
        ValueError: If one of them has such a tensor.
    """
    for argument, module in modules.items():
        if not isinstance(module, nn.Module):
            continue
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_inference():
                raise ValueError(
                    f"{argument}: its tensor {name!r} was made under torch.inference_mode(), so that it has no "
                    "gradients; build it outside of that block, or under torch.no_grad()."
                )
