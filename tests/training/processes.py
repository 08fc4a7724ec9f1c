"""Two processes of a group, in which a test runs a function, and what it returned in each."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

__all__ = ["Failed", "on_ranks"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.training.test_data_parallel"])  # which is imported once for all tests


class Failed(Exception):
    """What a process raised, as text; its notes are at the end."""


def on_ranks(function: Callable[..., Any], path: Path, *args: Any, size: int = 2, dies: int | None = None) -> list[Any]:
    """Calls a function in several processes of a gloo group.

    Args:
        function: A function at the top level of a module.
        path: An empty directory.
        *args: Its arguments.
        size: Number of processes.
        dies: The process that is expected to end without a result.

    Returns:
        What each returned, or the exception that it raised as :class:`Failed`; None of the one that died.
    """
    path.mkdir(parents=True, exist_ok=True)
    started = [_CONTEXT.Process(target=_one, args=(function, path, rank, size, args)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode is not None, "a process hangs"
    found = []
    for rank in range(size):
        file = path / f"{rank}.pickle"
        assert file.exists() == (rank != dies), f"process {rank} ended with {started[rank].exitcode}"
        found.append(pickle.loads(file.read_bytes()) if file.exists() else None)
    return found


def _one(function: Callable[..., Any], path: Path, rank: int, size: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(path / "store"), size)
    wait = timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
    try:
        result: Any = function(*args)
    except Exception as error:
        text = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        result = Failed(text, traceback.format_exc())
    (path / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    torch.distributed.destroy_process_group()
