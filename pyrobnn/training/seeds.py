"""One function for several seeds, over any executor: repeated trainings, rows of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int
from pyrobnn.core.executors import Units, check_executor
from pyrobnn.core.explanations import explained

__all__ = ["run_seeds"]

_LARGEST = 2**32 - 1


@explained
def run_seeds(
    function: Callable[[int], Any],
    seeds: Sequence[int],
    *,
    executor: Executor | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
) -> dict[int, Any]:
    """``{seed: function(seed)}``, each computed by itself, under generators that are seeded with the seed.

    Results do not depend on the executor, bit for bit, where workers compute with as many threads.

    Example:
        >>> with ProcessPoolExecutor(4) as pool:
        ...     scores = run_seeds(train_and_score, range(10), executor=pool, directory="seeds", resume=True)

    Args:
        function: What to run: of a seed, at the top level of a module, so that workers find it. With ``directory`` it
            returns numbers, strings, tensors, and lists, tuples and dicts of them.
        seeds: Different ints.
        executor: Where to run it, such as a ``ProcessPoolExecutor``; None: here, one seed after another.
        directory: Where each result is written to when it is there.
        resume: Whether to take the results that are in ``directory``, and run the function for other seeds only.

    Returns:
        The results by seed.

    Raises:
        TypeError: If the function cannot be sent to another process, or returns what cannot be kept.
        ValueError: If a seed is twice there or out of range, or ``directory`` holds something else.
        WorkerLostError: If a worker died: it names the seeds without a result.
        DirectoryInUseError: If another process or thread writes to ``directory``.
    """
    check_executor(executor)
    if not callable(function):
        raise TypeError(f"function: expected a function of a seed, got {function!r}.")
    if not seeds:
        raise ValueError("seeds: expected at least one.")
    for seed in seeds:
        check_int("seeds", seed, 0, _LARGEST)
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds: one is there twice, whose results would be the same.")
    name = getattr(function, "__qualname__", type(function).__name__)
    units = Units("seed", directory, resume, {"function": name})
    with units.recorded():
        own = {f"seed-{seed}": (seed,) for seed in seeds}
        found = units.run(_run, (function,), own, executor)
    return dict(zip(seeds, found.values(), strict=True))


def _run(function: Callable[[int], Any], seed: int) -> Any:
    with random_state.local(seed):
        return function(seed)
