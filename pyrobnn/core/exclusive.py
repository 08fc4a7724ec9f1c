"""One thread at a time where the state of the whole process is changed.

Pyro keeps its active handlers in one global list, validation is one global flag and torch has one random state; a model
has one mode, and its placeholders hold the weights of one draw. Blocks that change these hold one lock, which a thread
may take again while it has it. Waiting threads get it in the order in which they came, so that a prediction beside a
training run waits for the end of an epoch at most.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

__all__ = ["Exclusive", "exclusive", "in_one_thread"]


class Exclusive:
    """A lock that its holder may take again, and that is passed on in the order of requests; a context manager."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As new: what a forked process does, in which the threads that held or awaited the lock do not exist."""
        self._state = Lock()
        self._waiting: deque[Lock] = deque()
        self._owner: int | None = None
        self._is_taken = False
        self._depth = 0

    def acquire(self) -> None:
        """Waits until no other thread has the lock."""
        me = get_ident()
        if self._owner == me:
            self._depth += 1
            return
        with self._state:
            turn = None
            if self._is_taken:
                turn = Lock()
                turn.acquire()
                self._waiting.append(turn)
            self._is_taken = True
        if turn is not None:
            self._wait(turn)
        self._owner, self._depth = me, 1

    def release(self) -> None:
        """Passes the lock on, if this was the outermost block of the thread.

        Raises:
            RuntimeError: If this thread does not hold it.
        """
        if self._owner != get_ident():
            raise RuntimeError("the lock is held by another thread, or by none.")
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._pass_on()

    def _wait(self, turn: Lock) -> None:
        try:
            turn.acquire()
        except BaseException:  # an interrupt
            with self._state:
                has_left = turn in self._waiting
                if has_left:
                    self._waiting.remove(turn)
            if not has_left:
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        with self._state:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False

    def __enter__(self) -> Exclusive:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_LOCK = Exclusive()
os.register_at_fork(after_in_child=_LOCK.reset)

_users: dict[int, list[int]] = {}


def exclusive() -> Exclusive:
    """The lock of the library, to be held as ``with exclusive():``."""
    return _LOCK


@contextmanager
def in_one_thread(**modules: Any) -> Iterator[None]:
    """Refuses modules that another thread is using in such a block.

    Args:
        **modules: Models and guides, by the name of the argument that they are.

    Raises:
        RuntimeError: If another thread trains or samples one of them.
    """
    me = get_ident()
    with _LOCK:
        for argument, module in modules.items():
            if any(thread != me for thread in _users.get(id(module), ())):
                raise RuntimeError(
                    f"{argument}: another thread is training or sampling the same {type(module).__name__}, and both "
                    "would change it at once; give each thread a copy.deepcopy of its own."
                )
        for module in modules.values():
            _users.setdefault(id(module), []).append(me)
    try:
        yield
    finally:
        with _LOCK:
            for module in modules.values():
                threads = _users[id(module)]
                threads.remove(me)
                if not threads:
                    del _users[id(module)]
