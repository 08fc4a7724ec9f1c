"""Buffers that each member of an ensemble has of its own: BatchNorm's running statistics, above all.

Statistics belong to the weights they were taken with, so a network's buffers are kept once per member. Buffers of
other parts of the model (a likelihood's constants, say) stay the model's and are shared.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.bayesianize import BayesianModule, buffers, exchanged_buffers

__all__ = ["MemberBuffers", "network_buffers"]

_Slot = tuple[nn.Module, str]


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
        self._seen: tuple[weakref.ref[nn.Module], list[tuple[str, _Slot]], list[_Slot]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies look for the buffers of their own model."""
        return self.__dict__ | {"_seen": None}

    def __len__(self) -> int:
        return len(self.names)

    def extra_repr(self) -> str:
        """Their number."""
        return f"{len(self)} of each member"

    def stacked(self, members: Tensor) -> dict[str, Tensor]:
        """Copies ``{name in the model: [K, ...]}`` for members ``[K]``."""
        return {name: self.get_buffer(_key(name))[members] for name in self.names}

    @torch.no_grad()
    def write(self, member: int, values: Mapping[str, Tensor]) -> None:
        """Sets one member's buffers, those that ``values`` names."""
        for name in self.names:
            if name in values:
                self.get_buffer(_key(name))[member] = values[name]

    @contextlib.contextmanager
    def installed(self, model: Callable[..., Any], member: int, *, keep: bool, freeze_others: bool) -> Iterator[None]:
        """Runs the block with the member's buffers in the model.

        Args:
            model: The model.
            member: The member.
            keep: Whether what the block writes into them is kept.
            freeze_others: Whether what it writes into all other buffers is dropped.
        """
        own, others = self._slots(model) if isinstance(model, nn.Module) else ([], [])
        # Past the version counter: graphs of other members may have saved neighbouring rows.
        rows = [(module, name, self.get_buffer(key).data[member]) for key, (module, name) in own]
        inside = rows if keep else [(module, name, row.clone()) for module, name, row in rows]
        if freeze_others:
            inside += [(module, name, module.get_buffer(name).clone()) for module, name in others]
        with exchanged_buffers(inside):
            yield

    def _slots(self, model: nn.Module) -> tuple[list[tuple[str, _Slot]], list[_Slot]]:
        """Where the members' buffers live in the model, and the model's other buffers; found once per model."""
        if self._seen is None or self._seen[0]() is not model:
            modules = dict(model.named_modules())
            own = [(_key(name), (modules[(path := name.rpartition("."))[0]], path[2])) for name in self.names]
            taken = {(id(module), name) for _, (module, name) in own}
            others = [(module, name) for module, name, _ in buffers(model) if (id(module), name) not in taken]
            self._seen = (weakref.ref(model), own, others)
        return self._seen[1:]


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
    """Buffers' names may hold no dots."""
    return name.replace(".", "/")
