"""Training steps on one matrix ``[M, d]``: member by member, or all members in one vectorised pass.

A small network's step is mostly Python, which :func:`torch.func.vmap` pays once for all members instead of M times.
Both ways compute the same losses and gradients. See :func:`pays_off` for when ``"auto"`` chooses which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrobnn.guides.base import Site, by_site

__all__ = ["MemberLeaves", "evaluate_together", "pays_off"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# Weights per member up to which one pass beat the loop on a CPU (one thread, Adam, M = 8, as multiples of 8 separate
# steps). Linear layers: 0.3 at 5,000 weights, 0.6 to 0.9 at 70,000 to 130,000, 1.1 to 1.3 from 160,000 on. With
# convolutions, which become grouped ones: 0.3 at 1,400, 1.1 at 62,000. Two members gain nothing.
# With AVX-512 products cost less and the loop's memory traffic as much: one pass is ahead by 30 % at 160,000 weights,
# by 20 % at 270,000, and by 10 % at 480,000 (0.99 against 1.12), but there not for 32 members any more.
_LARGEST = 100_000
_LARGEST_AVX512 = 300_000
_LARGEST_AVX512_TOGETHER = 4_000_000  # of all members
_LARGEST_CONVOLUTIONAL = 10_000
_LARGEST_ON_OTHER_DEVICES = 10**6  # launches dominate longer there; memory for activations grows M-fold. Not measured.
_FEWEST = 3

_LARGEST_BLOCK = 2**25 - 2**16  # bytes; just below what glibc takes notice of


class MemberLeaves:
    """Leaf tensors that view the rows of a matrix, and one matrix for their gradients.

    Args:
        rows: The matrix ``[M, d]``; writing into it changes the leaves.
        sites: The sites in flat order.
    """

    def __init__(self, rows: Tensor, sites: Sequence[Site]) -> None:
        self.rows, self.sites = rows.detach(), sites
        self.gradient = torch.zeros_like(self.rows)
        self._filled: set[int] = set()
        self._leaves: dict[int | None, dict[str, Tensor]] = {}
        self._slots: dict[int | None, dict[str, Tensor]] = {}
        # glibc maps a block above a threshold afresh each time, page by page, until it has seen a larger one freed. The
        # gradients of all members are such blocks, and cost a step of 480,000 weights a fifth more. So it sees one.
        torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)

    def fit(self, rows: Tensor) -> bool:
        """Whether they still view this matrix."""
        own = self.rows
        return own.data_ptr() == rows.data_ptr() and own.dtype == rows.dtype and own.device == rows.device

    def values(self, member: int | None) -> dict[str, Tensor]:
        """The leaves of one member ``{site: [*unconstrained shape]}``, or of all ``{site: [M, ...]}``."""
        if member not in self._leaves:
            index: Any = slice(None) if member is None else member
            rows, gradient = (by_site(matrix[index], self.sites) for matrix in (self.rows, self.gradient))
            self._leaves[member] = {name: view.requires_grad_() for name, view in rows.items()}
            self._slots[member] = gradient
        return self._leaves[member]

    def forget(self) -> None:
        """Drops gradients that nobody collected, those of a step that was broken off."""
        for leaves in self._leaves.values():
            for leaf in leaves.values():
                leaf.grad = None

    def collect(
        self, parameter: nn.Parameter, member: int | None, factor: float, visited: Collection[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Takes the leaves' gradients, times ``factor``.

        Args:
            parameter: The matrix as a parameter, whose ``grad`` they are for.
            member: The member, or None for all.
            factor: The factor.
            visited: The members that this step visits; the others' gradients are zero.

        Returns:
            The gradients ``[d]`` or ``[M, d]``, and None if they lie where ``parameter.grad`` is, else the part of it
            that they are still to be added to.
        """
        if parameter.grad is None:
            self._filled.clear()
            for other in set(range(len(self.rows))).difference(visited):
                self.gradient[other].zero_()
            parameter.grad = self.gradient
        wanted = set(range(len(self.rows))) if member is None else {member}
        index: Any = slice(None) if member is None else member
        if parameter.grad is self.gradient and self._filled.isdisjoint(wanted):
            self._filled |= wanted
            target, slots = self.gradient[index], self._slots[member]
            added_to = None
        else:
            target = torch.empty_like(self.rows[index])
            slots, added_to = by_site(target, self.sites), parameter.grad[index]
        for name, leaf in self._leaves[member].items():
            if leaf.grad is None:
                slots[name].zero_()
            else:
                torch.mul(leaf.grad, factor, out=slots[name])
            leaf.grad = None
        return target, added_to


def evaluate_together(
    values: Mapping[str, Tensor],
    constrain: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    evaluate: Callable[[dict[str, Tensor]], Any],
) -> Any:
    """What ``evaluate`` finds, averaged over members, from one vectorised run of it.

    Args:
        values: Unconstrained values of all members, ``{site: [M, ...]}``.
        constrain: Makes sites' values of one member's.
        evaluate: From one member's values to its :class:`~pyrobnn.elbo.parts.Particle`.
    """
    seen: list[Any] = []

    def one(member: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        seen[:] = [evaluate(constrain(member))]
        return torch.as_tensor(seen[0].log_likelihood), torch.as_tensor(seen[0].in_graph)

    # Validation asks for the values of tensors, which vmap does not tell; non-finite losses are noticed all the same.
    with pyro.validation_enabled(False):
        log_likelihood, in_graph = torch.func.vmap(one, randomness="different")(dict(values))
    return replace(seen[0], log_likelihood=log_likelihood.mean(), in_graph=in_graph.mean())


def pays_off(model: Any, rows: Tensor) -> bool:
    """Whether one vectorised pass is expected to be faster than a loop over members ``[M, d]``, and to be possible."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    num_members, num_weights = rows.shape
    if num_members < _FEWEST or any(isinstance(module, nn.RNNBase) for module in modules):
        return False
    if rows.device.type != "cpu":
        return num_weights <= _LARGEST_ON_OTHER_DEVICES
    if any(isinstance(module, _CONVOLUTIONS) for module in modules):
        return num_weights <= _LARGEST_CONVOLUTIONAL
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return num_weights <= _LARGEST_AVX512 or rows.numel() <= _LARGEST_AVX512_TOGETHER
    return num_weights <= _LARGEST
