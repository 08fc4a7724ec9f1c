"""One directory, one writer: a lock that names its holder and ends with the holder's process.

The lock is the operating system's, on a small file in the directory, so that of a process that was killed is free again
by itself. Within one process a table of held locks does the same for threads. Where the file system has no locks, the
holder written in the file counts, as long as its process lives. Readers need none: writers replace files atomically.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["DirectoryInUseError", "locked"]

_held: dict[str, tuple[int, dict[str, Any]]] = {}  # by path of the lock's file: process and holder
_guard = threading.Lock()
_PAUSE = 0.01  # seconds between tries


class DirectoryInUseError(RuntimeError):
    """Another process or thread is writing to the directory; the message names it."""


@contextlib.contextmanager
def locked(
    directory: Path, document: str, purpose: str, *, argument: str = "path", wait: float = 0.0
) -> Iterator[None]:
    """Makes the block the only writer of a document in a directory.

    The directory is made, and removed again if it was new and nothing was written to it.

    Args:
        directory: The directory.
        document: Name of the document.
        purpose: What the block does, for the messages of others.
        argument: The argument to name in messages.
        wait: Seconds to wait for another holder of the same purpose. Others are refused at once.

    Raises:
        DirectoryInUseError: If another one holds the lock.
        OSError: If the directory cannot be written to.
    """
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = directory.resolve() / f".{document}.lock"
        descriptor = _acquire(file, purpose, argument, time.monotonic() + wait)
    except OSError as error:
        raise OSError(f"{argument}: could not write to {directory} ({error}); what was there is untouched.") from error
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # not in a fork, which holds nothing
            _release(file, descriptor)
            if is_new:
                with contextlib.suppress(OSError):
                    directory.rmdir()  # only if it is empty


def _acquire(file: Path, purpose: str, argument: str, deadline: float) -> int:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "purpose": purpose,
    }
    while True:
        with _guard:
            found = _other_holder(file)
            if found is None:
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
                found = _try_lock(descriptor)
                if found is None and _is_same(descriptor, file):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
                    _held[str(file)] = (os.getpid(), holder)
                    return descriptor
                os.close(descriptor)
        if found is not None and (found.get("purpose") != purpose or time.monotonic() > deadline):
            raise DirectoryInUseError(
                f"{argument}: {file.parent} is being written to by {found.get('purpose', 'a writer')} in process "
                f"{found.get('pid', 'unknown')} on {found.get('host', 'an unknown host')}, since "
                f"{found.get('since', 'an unknown time')}; wait until that has ended, or use another directory."
            )
        time.sleep(_PAUSE if found is not None else 0.0)


def _other_holder(file: Path) -> dict[str, Any] | None:
    """The holder in this process, if any; to open the file would free an operating system's lock of this process."""
    process, holder = _held.get(str(file), (0, {}))
    return holder if process == os.getpid() else None


def _try_lock(descriptor: int) -> dict[str, Any] | None:
    """Takes the lock and returns None, or returns who holds it."""
    try:
        if fcntl is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except (BlockingIOError, PermissionError):
        return _written(descriptor)
    except OSError:  # this file system has no locks
        pass
    holder = _written(descriptor)
    return holder if holder.get("host") == socket.gethostname() and _is_alive(holder.get("pid")) else None


def _written(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_alive(process: object) -> bool:
    if os.name != "posix" or not isinstance(process, int) or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_same(descriptor: int, file: Path) -> bool:
    """Whether the file is still the one that was opened: its last holder may have removed it in between."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _release(file: Path, descriptor: int) -> None:
    with _guard:
        _held.pop(str(file), None)
        with contextlib.suppress(OSError):
            file.unlink()
        os.close(descriptor)
