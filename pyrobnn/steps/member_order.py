"""Which members of an ensemble a training step visits, and with which buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.steps.member_buffers import MemberBuffers

__all__ = ["MemberOrder"]


class MemberOrder:
    """Members in the order of a training step.

    Args:
        num_members: Number M of members.
        members_per_step: How many a training step visits, at random; all in order if None.
        buffers: Buffers that each member has of its own.

    Attributes:
        per_step: Number of members in a training step.
    """

    def __init__(self, num_members: int, members_per_step: int | None, buffers: MemberBuffers | None = None) -> None:
        self.num_members, self.members_per_step, self.buffers = num_members, members_per_step, buffers
        self.per_step = members_per_step or num_members
        self._order = list(range(num_members))
        self._components = list(torch.arange(num_members).unbind())

    def pick(self, index: int | None, avoid: Tensor | None = None) -> int:
        """The member at a position of the training step; for None a random one other than ``avoid``."""
        if index is None:
            if avoid is None or self.num_members == 1:
                return int(torch.randint(self.num_members, (), device="cpu"))
            other = int(torch.randint(self.num_members - 1, (), device="cpu"))
            return other + (other >= int(avoid))
        if index == 0 and self.members_per_step is not None:
            self._order = torch.randperm(self.num_members, device="cpu")[: self.members_per_step].tolist()
        return self._order[index % len(self._order)]

    def member_state(self, member: int) -> tuple[Tensor, dict[str, Tensor], bool]:
        """The component index, the member's buffers, and whether a run writes into these (``Draws.live``)."""
        live = torch.is_grad_enabled()
        own = {} if self.buffers is None else self.buffers.rows(member) if live else self.buffers.copies(member)
        return self._components[member], own, live
