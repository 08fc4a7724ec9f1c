"""Random states: preserved, seeded, read and written.

``torch.manual_seed`` reseeds the generators of every GPU, also of those that ``fork_rng`` does not put back.
The functions here touch the CPU's generator and that of one device, and no other.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrobnn.core.arguments import check_int
from pyrobnn.core.exclusive import exclusive

__all__ = [
    "State",
    "fresh_seed",
    "iterated",
    "local",
    "preserved",
    "read",
    "read_all",
    "seed",
    "seeded",
    "watched",
    "write",
    "write_all",
]

State = tuple[Tensor, Tensor | None]
Item = TypeVar("Item")


@contextlib.contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Puts the generators of the CPU and of ``device`` back to their present state when the block ends.

    The random state is one for all threads, so others wait to enter such a block until this one ends.
    """
    with exclusive(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[Callable[[], bool]]:
    """Like :func:`preserved`, and for Python's and NumPy's generators, too.

    Yields:
        A function that says whether any of these was used in the block so far.
    """
    with preserved(device):
        before, python, numpy = read(device), random.getstate(), np.random.get_state()  # noqa: NPY002

        def is_used() -> bool:
            now = np.random.get_state()  # noqa: NPY002
            pairs = zip(before, read(device), strict=True)
            return (
                any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs)
                or random.getstate() != python
                or any(not np.array_equal(a, b) for a, b in zip(numpy, now, strict=True))
            )

        try:
            yield is_used
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def seeded(value: int, device: torch.device) -> Iterator[None]:
    """Draws of the block start from ``seed(value, device)``; the previous state is restored after it."""
    with preserved(device):
        seed(value, device)
        yield


def seed(value: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of ``device``."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


@contextlib.contextmanager
def local(value: int | None) -> Iterator[None]:
    """Seeds torch, NumPy, Python and Pyro for the block; the previous states are restored after it.

    Args:
        value: The seed; other threads that need the random state wait until the block ends. None leaves the
            generators as they are, and what the block draws from them is drawn.
    """
    if value is None:
        yield
        return
    check_int("seed", value, 0, 2**32 - 1)  # NumPy takes no other
    with exclusive():
        before = read_all()
        pyro.set_rng_seed(value)
        try:
            yield
        finally:
            write_all(before)


def iterated(items: Iterable[Item], value: int | None) -> Iterator[Item]:
    """The items, each made under random states of torch, NumPy and Python that begin at a seed and are its own.

    A loader takes numbers from them when it begins (its workers' seeds, an order) and for each batch. Between items
    the states are those of the caller.

    Args:
        items: What is iterated over, such as a loader; it is begun with the first item.
        value: The seed; None leaves the generators as they are.
    """
    if value is None:
        yield from items
        return
    iterator: Iterator[Item] | None = None
    own: dict[str, Any] | None = None
    while True:
        with local(value):
            if own is not None:
                write_all(own)
            iterator = iter(items) if iterator is None else iterator
            try:
                item = next(iterator)
            except StopIteration:
                return
            own = read_all()
        yield item


def read(device: torch.device) -> State:
    """The states of the generators of the CPU and of ``device``."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def write(state: State, device: torch.device) -> None:
    """Puts both generators into a state that :func:`read` gave."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def read_all(generators: Iterable[torch.Generator] = ()) -> dict[str, Any]:
    """The states of all of torch, numpy and Python, and of the given generators, for a checkpoint."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (what data loaders use)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": list(random.getstate()),
        "generators": [generator.get_state() for generator in generators],
    }


def write_all(state: dict[str, Any], generators: Iterable[torch.Generator] = ()) -> None:
    """Goes back to the states that :func:`read_all` read."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved)


def fresh_seed() -> int:
    """A seed drawn from the CPU's generator, whatever the default device is."""
    return int(torch.randint(2**62, (), device="cpu"))
