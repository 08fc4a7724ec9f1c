"""Which kind of run arguments of :func:`pyrobnn.fit` ask for, and what is said when its processes are lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as group

from pyrobnn.core import random_state
from pyrobnn.core.processes import are_independent
from pyrobnn.core.ranks import RankFailedError, RankLostError, Ranks
from pyrobnn.training.joint_run import DrawsOfRanks, JointRun
from pyrobnn.training.run import Run
from pyrobnn.training.trackers.base import TrackerCalls

__all__ = ["check_draws", "lost_ranks_explained", "started"]


def check_draws(data_parallel: Any, fabric: Any) -> DrawsOfRanks:
    """What the arguments say of processes and their draws; None: this process trains by itself.

    Raises:
        ValueError: If it is something else, or processes were declared independent.
    """
    if data_parallel not in (None, *get_args(get_args(DrawsOfRanks)[0])):
        raise ValueError(f"data_parallel: expected 'own_draws', 'same_draws' or None, got {data_parallel!r}.")
    draws: DrawsOfRanks = "own_draws" if data_parallel is None and fabric is not None else data_parallel
    if draws is not None and are_independent():
        raise ValueError("data_parallel: the processes were declared independent; leave that block out.")
    return draws


def started(
    draws: DrawsOfRanks, accumulate: int, seed: int | None, fabric: Any, *, calls: TrackerCalls, **options: Any
) -> Run:
    """The run that arguments of :func:`pyrobnn.fit` ask for.

    Args:
        draws: Whether processes share their draws; None: no others take part.
        accumulate: Batches in a step.
        seed: Seeds the run.
        fabric: Whose precision is used, if it is not None.
        calls: Calls of trackers, by the first process.
        **options: Further fields of the run.
    """
    if draws is None and accumulate == 1:
        return Run(calls=calls, **options)
    device = next(options["guide"].parameters()).device
    uses_device = group.is_available() and group.is_initialized() and group.get_backend() != "gloo"
    ranks = Ranks(device if uses_device else torch.device("cpu"), alone=draws is None)
    run = JointRun(
        calls=calls if ranks.is_first else TrackerCalls((), None),
        ranks=ranks,
        draws=draws,
        accumulate=accumulate,
        seed=random_state.fresh_seed() % 2**32 if seed is None else seed,
        autocast=contextlib.nullcontext if fabric is None else fabric.autocast,
        **options,
    )
    with ranks.together("at its start"):
        run.check()
    run.prepare()
    return run


@contextlib.contextmanager
def lost_ranks_explained(run: Run, directory: Path | None) -> Iterator[None]:
    """Says in errors of lost processes what the last checkpoint is."""
    try:
        yield
    except (RankLostError, RankFailedError) as error:
        if directory is not None and (count := run.history.epochs):
            error.add_note(f"checkpoint: {directory} holds the state after epoch {count}; go on with resume=True.")
        raise
