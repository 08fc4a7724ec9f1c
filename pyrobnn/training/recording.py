"""The directory of a training run: one run at a time writes to it, and a later one goes on from what is there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyrobnn.core.locks import locked
from pyrobnn.core.storage import STATE, load_state

__all__ = ["recorded"]


@contextlib.contextmanager
def recorded(
    directory: Path | None,
    resume: bool,
    restore: Callable[[Any, Path], None],
    is_finished: Callable[[], bool],
    what: str,
) -> Iterator[None]:
    """Makes the block the only one that trains with this directory, and continues the run in it if there is one.

    A finished run is only read, which its directory need not be writable for.

    Args:
        directory: The directory; None: nothing is done.
        resume: Whether to continue.
        restore: Puts the run into a state that was read from the directory.
        is_finished: Whether nothing is left to be done.
        what: The function that trains, for messages.

    Raises:
        CheckpointError: If what is in the directory is damaged.
        DirectoryInUseError: If another process or thread trains or samples there.
        OSError: If it cannot be written to.
        ValueError: If it is another run's.
    """
    with contextlib.ExitStack() as stack:
        if directory is not None:
            refused = None
            try:
                stack.enter_context(locked(directory, STATE.document, what, argument="checkpoint"))
            except OSError as error:
                refused = error
            if resume:
                with contextlib.suppress(FileNotFoundError):
                    restore(load_state(directory, "checkpoint"), directory)
            if refused is not None and not is_finished():
                raise refused
        yield
