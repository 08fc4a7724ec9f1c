"""The draws of any guide as flat vectors, to learn from: all of them in blocks, or batches at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.guides.base import Guide

__all__ = ["FlatDraws", "random_rows"]

_BLOCK_BYTES = 2**26
_ENDLESS_DRAWS = 2000  # of a guide without a fixed number of draws, from which means, scales and axes are taken


class FlatDraws:
    """Unconstrained flat vectors ``[P]`` of a guide's draws, in the order of a generator built from the guide.

    Args:
        guide: The guide.

    Attributes:
        count: Number of draws; None where there is no end of them.

    Raises:
        ValueError: If members have running statistics of their own, which would be lost without a word.
    """

    def __init__(self, guide: Guide) -> None:
        self.guide = guide
        points = guide.facts.num_points
        self.count = points if points is not None and points > 1 else None
        self._seed = random_state.fresh_seed()
        some = guide.sample(16)
        self._device = next(iter(some.values())).device
        for name, buffer in some.buffers.items():
            if bool((buffer != buffer[:1]).any()):
                raise ValueError(
                    f"guide: its members have buffers of their own ({name!r} differs), which a generator does not "
                    "make; use a network without running statistics, or sample with batch_norm='freeze'."
                )

    def blocks(self) -> Iterator[Tensor]:
        """All draws ``[S, P]`` in blocks, the same at each call: all there are, or 2000."""
        total = _ENDLESS_DRAWS if self.count is None else self.count
        size = max(1, _BLOCK_BYTES // (4 * self.guide.layout.size))
        for start in range(0, total, size):
            stop = min(start + size, total)
            if self.count is None:
                with random_state.seeded(self._seed + start, self._device):
                    block = self._fresh(stop - start)
                yield block
            else:
                yield self._members(torch.arange(start, stop))

    def reader(
        self, batch_size: int, device: torch.device, max_bytes: int, change: Callable[[Tensor], Tensor]
    ) -> Callable[[], Tensor]:
        """Batches ``[B, P]`` of draws after ``change`` and on the device, others at each call."""
        count = self.count
        if count is None:
            return lambda: change(self._fresh(batch_size)).to(device)
        if count * self.guide.layout.size * 4 > max_bytes:
            return lambda: change(self._members(torch.randint(count, (batch_size,)))).to(device)
        rows = torch.cat([change(block).to(device) for block in self.blocks()])
        return lambda: random_rows(rows, batch_size)

    def _fresh(self, count: int) -> Tensor:
        return self._flatten(self.guide.sample(count))

    def _members(self, members: Tensor) -> Tensor:
        return self._flatten(self.guide.atoms(members))

    def _flatten(self, draws: Mapping[str, Tensor]) -> Tensor:
        layout = self.guide.layout
        return layout.join(layout.unconstrain({name: draws[name].detach() for name in layout}))


def random_rows(rows: Tensor, count: int) -> Tensor:
    """``count`` rows, with replacement."""
    return rows[torch.randint(len(rows), (count,), device=rows.device)]
