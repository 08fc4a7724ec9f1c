"""Modules whose tensors are found from data at once, in sizes that the data decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.pyro_compat import before_loading

__all__ = ["Fitted"]


class Fitted(nn.Module):
    """A module with empty buffers until it is fitted; a state dict brings those of a fitted one, whatever their shapes.

    Args:
        names: The buffers.

    Attributes:
        num_data: Number of data that it was fitted to, 0 before.
    """

    num_data: Tensor

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.register_buffer("num_data", torch.zeros((), dtype=torch.int64))
        for name in names:
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        before_loading(self, _take_shapes)

    def store(self, num_data: int, **tensors: Tensor) -> None:
        """Sets the buffers of a fitted module."""
        for name, tensor in tensors.items():
            assert name in self._buffers, name
            setattr(self, name, tensor.detach().clone())
        self.num_data = torch.tensor(num_data, device=next(iter(tensors.values())).device)

    def check_fitted(self, method: str, arguments: str = "prediction, targets") -> None:
        """Refuses the use of a module that was not fitted.

        Args:
            method: The method that fits it, for the message.
            arguments: What it takes.

        Raises:
            RuntimeError: If it was not.
        """
        if not int(self.num_data):
            kind = type(self).__name__
            raise RuntimeError(
                f"{kind}: it is not fitted yet; call {method}({arguments}) on held-out data, or load a state dict."
            )


def _take_shapes(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    for name, own in dict(module.named_buffers(recurse=False)).items():
        given = state_dict.get(prefix + name)
        if isinstance(given, Tensor) and (given.shape != own.shape or given.dtype != own.dtype):
            setattr(module, name, torch.empty_like(given, device=own.device))
