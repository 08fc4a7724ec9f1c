"""Gradients of members that run one after another, collected row by row and added to the parameter once.

A pass through row m of a matrix ``[M, d]`` would fill a gradient of the whole matrix each time. Rows are leaves here;
their gradients are moved to the rows of one matrix, which autograd takes over when the training step ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import GradientBuffers
from pyrobnn.steps.normal_prior import NormalWindow

__all__ = ["MemberRows"]

AddPrior: TypeAlias = Callable[[Tensor, Sequence[NormalWindow], Any, float], None]

_LARGEST_BLOCK = 2**25 - 2**16  # bytes; just below the largest threshold of glibc


class MemberRows:
    """Leaf tensors that view the rows of a parameter.

    Args:
        layout: The sites.
        loc: The parameter ``[M, d]``; writing into it changes the leaves.
    """

    def __init__(self, layout: Layout, loc: nn.Parameter) -> None:
        self.layout, self.loc = layout, loc
        self._view = loc.detach()
        self._buffers = GradientBuffers(loc)
        self._leaves: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
        self._normals: dict[int, Sequence[NormalWindow]] = {}
        self._pending: list[int] = []
        self._filled: set[int] = set()
        self._total: Tensor | None = None
        self._views: dict[tuple[int, int], list[Tensor]] = {}
        # glibc maps a block above a threshold afresh each time, page by page, until a larger one has been freed. The
        # gradients of all members are such blocks, and cost a step of 480,000 weights a fifth more without this one.
        torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)

    def fits(self, loc: nn.Parameter) -> bool:
        """Whether the leaves still view this parameter."""
        own = self._view
        return own.data_ptr() == loc.data_ptr() and own.dtype == loc.dtype and own.device == loc.device

    def leaves(self, member: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The token and the unconstrained values ``{site: [*shape]}`` of one member."""
        if member not in self._leaves:
            values = {name: view.requires_grad_() for name, view in self.layout.split(self._view[member]).items()}
            self._leaves[member] = self._view.new_zeros(()).requires_grad_(), values
        self._pending.append(member)
        return self._leaves[member]

    def record(self, member: int, normals: Sequence[NormalWindow]) -> None:
        """Records the fixed Normal priors that the divergence of a member's draw included."""
        self._normals[member] = normals

    def discard(self) -> None:
        """Drops gradients that were not delivered, those of a training step that raised an error."""
        for member in self._pending:
            self._clear(member)
        self._pending.clear()
        self._filled.clear()
        self._total = None

    @torch.no_grad()
    def collect(self, add_prior: AddPrior) -> None:
        """Moves the gradients of the members that ran, times M, to their rows."""
        for member in dict.fromkeys(self._pending):
            token, values = self._leaves[member]
            if token.grad is None and all(leaf.grad is None for leaf in values.values()):
                continue
            if self._total is None:
                self._total = self._buffers.free()
            is_first, num_members = member not in self._filled, len(self.loc)
            for leaf, slot in zip(values.values(), self._slots(self._total, member), strict=True):
                if leaf.grad is not None and is_first:
                    torch.mul(leaf.grad, num_members, out=slot)
                elif leaf.grad is not None:
                    slot.add_(leaf.grad, alpha=num_members)
                elif is_first:
                    slot.zero_()
            if token.grad is not None:
                row = self._total[member]
                add_prior(row, self._normals.get(member, []), member, float(token.grad) * num_members)
            self._filled.add(member)
            self._clear(member)
        self._pending.clear()

    def deliver(self, add_prior: AddPrior) -> None:
        """Adds the rows to ``loc.grad``, once per training step; rows of members that did not run are zero."""
        self.collect(add_prior)
        total, filled = self._total, set(self._filled)
        self.discard()
        if total is None or not self.loc.requires_grad:
            return
        for member in set(range(len(self.loc))).difference(filled):
            total[member].zero_()
        with torch.enable_grad():
            _Delivery.apply(self.loc, total).backward()

    def _clear(self, member: int) -> None:
        token, values = self._leaves[member]
        for leaf in (token, *values.values()):
            leaf.grad = None

    def _slots(self, total: Tensor, member: int) -> list[Tensor]:
        key = (total.data_ptr(), member)
        if key not in self._views:
            self._views[key] = list(self.layout.split(total[member]).values())
        return self._views[key]


class _Delivery(torch.autograd.Function):
    """A scalar whose gradient by the parameter is a given tensor, which autograd takes over."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return loc.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.detach(), None
