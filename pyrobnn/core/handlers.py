"""Pyro's effect handlers and its validation, which are one for all threads, for one thread at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pyro
from pyro.poutine.messenger import Messenger

from pyrobnn.core.exclusive import exclusive

__all__ = ["ExclusiveMessenger", "validation_enabled"]


class ExclusiveMessenger(Messenger):
    """A handler; while it is active, handlers of this class in other threads wait to be.

    Pyro sends each message to all active handlers, whichever thread they are of.
    """

    def __enter__(self) -> Self:
        exclusive().acquire()
        try:
            return super().__enter__()
        except BaseException:
            exclusive().release()
            raise

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            exclusive().release()


@contextmanager
def validation_enabled(is_enabled: bool) -> Iterator[None]:
    """Pyro's context manager of this name, in one thread at a time; not to be left by a ``yield``."""
    with exclusive(), pyro.validation_enabled(is_enabled):
        yield
