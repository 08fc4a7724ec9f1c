"""Blocks of draws made one ahead, in a thread of their own.

Random numbers come from one processor core however many there are, so beside a network that uses several they take a
share of a prediction's time that grows. The interpreter lock is released meanwhile, so the next block can be drawn
while the network runs on the present one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetched"]

T = TypeVar("T")


def prefetched(make: Callable[[int], T], sizes: Iterable[int]) -> Iterator[T]:
    """``make(size)`` for each size in turn, in order, always one ahead.

    Args:
        make: Makes a block; it must not use a random state that others use.
        sizes: Sizes of the blocks.

    Yields:
        The blocks. What ``make`` raises is raised where its block is requested.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="pyrobnn-draws") as thread:
        pending = None
        for size in sizes:
            ahead = thread.submit(make, size)
            if pending is not None:
                yield pending.result()
            pending = ahead
        if pending is not None:
            yield pending.result()
