"""Draws that bring buffers along: in an ensemble, running statistics belong to the weights they were taken with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pyrobnn.bayesianize import exchanged_buffers

__all__ = ["Draws", "installed_buffers"]


class Draws(dict[str, Tensor]):
    """Posterior draws ``{site: [K, *site shape]}``, or one of them without the leading dimension.

    Args:
        values: Values by site.
        buffers: Buffers that these draws are to be run with, by their name in the model, ``[K, *buffer shape]``;
            all other buffers are the model's own.
    """

    def __init__(self, values: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(values)
        self.buffers = dict(buffers or {})

    @classmethod
    def of(cls, draws: Mapping[str, Tensor]) -> Draws:
        """The draws themselves, with no buffers if they have none."""
        return draws if isinstance(draws, Draws) else cls(draws)

    def at(self, index: Any) -> Draws:
        """Draw ``index``, or those that a slice or an index tensor names."""
        return Draws(
            {name: value[index] for name, value in self.items()},
            {name: value[index] for name, value in self.buffers.items()},
        )


@contextlib.contextmanager
def installed_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> Iterator[None]:
    """Lets the model work on copies of these buffers (by name); its own come back, untouched, when the block ends.

    Raises:
        KeyError: If the model has no such buffer.
    """
    if not buffers:
        yield
        return
    modules = dict(model.named_modules())
    places = [(modules[(path := name.rpartition("."))[0]], path[2], buffer.clone()) for name, buffer in buffers.items()]
    with exchanged_buffers(places):
        yield
