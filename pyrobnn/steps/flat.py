"""Work on flat vectors of all sites: gradients collected in one, passes in parts that fit a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["chunks", "collect"]


def chunks(window: slice, size: int) -> Iterator[slice]:
    """Parts of a window of a flat vector, of ``size`` elements but for the last."""
    for start in range(window.start, window.stop, size):
        yield slice(start, min(start + size, window.stop))


def collect(gradients: Sequence[Tensor | None], slots: Sequence[Tensor], out: Tensor) -> None:
    """Writes the gradients by the sites' values into one vector; a site the loss does not depend on counts zero.

    Args:
        gradients: By site; what a layer has written to its slot stays there.
        slots: Views of the vector by site. They may hold the sites' values until now, which may themselves be among the
            gradients.
        out: The vector ``[d]``.
    """
    moved = []
    start = out.data_ptr()
    stop = start + out.nbytes
    for gradient, slot in zip(gradients, slots, strict=True):
        if gradient is None:
            moved.append((slot, torch.zeros_like(slot)))
            continue
        place = gradient.data_ptr()
        if not start <= place < stop:
            moved.append((slot, gradient))
        elif place != slot.data_ptr() or gradient.stride() != slot.stride():  # another value, returned as gradient
            moved.append((slot, gradient.clone()))
    if len(moved) == len(slots):
        torch.cat([part.reshape(-1) for _, part in moved], out=out)
    else:
        for slot, part in moved:
            slot.copy_(part)
