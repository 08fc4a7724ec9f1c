"""The buffers of each member of an ensemble, such as BatchNorm's running statistics.

Running statistics depend on the weights, so each member has a copy of the networks' buffers. Buffers of other parts of
the model (constants of a likelihood) are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.model.bayesianize import BayesianModule

__all__ = ["MemberBuffers", "network_buffers"]


class MemberBuffers(nn.Module):
    """The persistent buffers of a model's converted networks, ``[M, ...]``.

    Args:
        model: The model.
        num_members: Number M of members.
    """

    def __init__(self, model: Callable[..., Any], num_members: int) -> None:
        super().__init__()
        self.names: list[str] = []
        for name, buffer in network_buffers(model).items():
            self.names.append(name)
            self.register_buffer(_key(name), buffer.detach().expand(num_members, *buffer.shape).clone())

    def __len__(self) -> int:
        return len(self.names)

    def extra_repr(self) -> str:
        """Their number."""
        return f"{len(self)} of each member"

    def rows(self, member: int) -> dict[str, Tensor]:
        """Views of one member's buffers by their name in the model; writing into them changes the member."""
        # `.data` bypasses the version counter: graphs of other members may have saved other rows of the same tensor.
        return {name: self.get_buffer(_key(name)).data[member] for name in self.names}

    def copies(self, member: int) -> dict[str, Tensor]:
        """Copies of :meth:`rows`."""
        return {name: row.clone() for name, row in self.rows(member).items()}

    def stacked(self, members: Tensor) -> dict[str, Tensor]:
        """Copies ``{name in the model: [K, ...]}`` for members ``[K]``."""
        return {name: self.get_buffer(_key(name))[members] for name in self.names}

    @torch.no_grad()
    def write(self, member: int, values: Mapping[str, Tensor]) -> None:
        """Sets those of one member's buffers that ``values`` names."""
        for name in self.names:
            if name in values:
                self.get_buffer(_key(name))[member] = values[name]


def network_buffers(model: Callable[..., Any]) -> dict[str, Tensor]:
    """Persistent buffers of the model's converted networks, by their name in the model."""
    found = {}
    for prefix, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, BayesianModule):
            persistent = module.network.state_dict(keep_vars=True)
            for name, buffer in module.network.named_buffers():
                if name in persistent:
                    found[f"{prefix}.net.{name}" if prefix else f"net.{name}"] = buffer
    return found


def _key(name: str) -> str:
    """Names of buffers must not contain dots."""
    return name.replace(".", "/")
