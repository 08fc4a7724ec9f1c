"""Independent pieces of work over any ``concurrent.futures.Executor``: members, chains, simulations, seeds.

Each piece, a *unit*, gets copies of what it needs as bytes, and has a seed of its own, so its result depends neither on
which worker ran it nor on what else ran there. Finished units are kept when others fail, in a directory if there is
one, from which a later call goes on.

Units are sent as bytes of plain pickle, and not as the queues of ``multiprocessing`` would send them: torch makes these
move tensors into memory that sender and receiver share, where a worker that trains a model would train the caller's.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import pickle
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any

import torch

from pyrobnn.core.exclusive import exclusive
from pyrobnn.core.files import check_directory
from pyrobnn.core.locks import locked
from pyrobnn.core.random_state import fresh_seed
from pyrobnn.core.storage import STATE, load_state, save_state, write_state

__all__ = ["SerialExecutor", "Units", "WorkerLostError", "check_executor", "unit_seeds"]

_NAMED = 6  # units that a message names
_SEEDS = 2**32  # NumPy takes no larger seed


class WorkerLostError(RuntimeError):
    """A worker process died; what other units returned is kept.

    Attributes:
        lost: Names of the units without a result.
    """

    def __init__(self, message: str, lost: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lost = tuple(lost)


class SerialExecutor(Executor):
    """Runs each unit where it is submitted, in this process: what other executors' results are equal to, bit for bit.

    Example:
        >>> pyrobnn.sample(model, loader, kernel=kernel, num_samples=100, num_chains=4, executor=SerialExecutor())
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls the function, and returns a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def check_executor(executor: Any) -> None:
    """Refuses what is no executor.

    Raises:
        TypeError: If it is another object, such as a class or a ``multiprocessing.Pool``.
    """
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(
            "executor: expected a concurrent.futures.Executor, such as ProcessPoolExecutor(4) or that of "
            f"Client.get_executor() of Dask, got {executor!r}."
        )


def unit_seeds(count: int) -> list[int]:
    """Seeds of so many units, drawn from the CPU's generator; the first few do not depend on their number."""
    generator = torch.Generator().manual_seed(fresh_seed())
    return [int(torch.randint(_SEEDS, (), generator=generator)) for _ in range(count)]


class Units:
    """Results by name, of units that run on an executor.

    Args:
        kind: What a unit is, in the singular, for messages: ``"member"``.
        directory: Where each result is written to as soon as it is there; None keeps them in memory alone.
        resume: Whether results that are there are taken.
        settings: What a resumed call must have in common with the first: numbers, strings, lists of them.
        drawn: Those that were drawn at random instead of stated; a resumed call takes them from the first.

    Attributes:
        results: By name of the unit.

    Raises:
        ValueError: If there is nothing to resume from.
    """

    def __init__(
        self,
        kind: str,
        directory: str | Path | None,
        resume: bool,
        settings: Mapping[str, Any],
        drawn: Collection[str] = (),
    ) -> None:
        if resume and directory is None:
            raise ValueError("resume: nothing to resume from; pass directory= that of the earlier call.")
        self.kind = kind
        self.directory = None if directory is None else check_directory("directory", directory)
        self.resume, self.settings, self.drawn = resume, dict(settings), set(drawn)
        self.results: dict[str, Any] = {}

    @contextlib.contextmanager
    def recorded(self) -> Iterator[dict[str, Any]]:
        """Makes the block the only writer of the directory; yields the settings, with what the first call drew.

        Raises:
            CheckpointError: If what is there is damaged.
            DirectoryInUseError: If another call writes there.
            ValueError: If there are results and ``resume`` is False, or they are those of another call.
        """
        if self.directory is None:
            yield self.settings
            return
        with locked(self.directory, STATE.document, self.kind, argument="directory"):
            found = None
            with contextlib.suppress(FileNotFoundError):
                found = load_state(self.directory, "directory")
            if found is None:
                write_state(self.directory, self.settings, "directory")
            elif not self.resume:
                raise ValueError(
                    f"directory: {self.directory} holds results already; pass resume=True to go on, or another "
                    "directory."
                )
            else:
                self._take(found)
            yield self.settings

    def _take(self, found: Any) -> None:
        if not isinstance(found, dict) or found.keys() != self.settings.keys():
            raise ValueError(f"directory: {self.directory} holds something else, not results of a {self.kind}.")
        for name, value in self.settings.items():
            if name in self.drawn:
                self.settings[name] = found[name]
            elif value != found[name]:
                raise ValueError(
                    f"resume: the results in {self.directory} were made with {name} {found[name]!r}, but now it is "
                    f"{value!r}; pass the same arguments as then."
                )

    def run(
        self,
        function: Callable[..., Any],
        shared: tuple[Any, ...],
        units: Mapping[str, tuple[Any, ...]],
        executor: Executor | None,
        done: Callable[[], object] = lambda: None,
    ) -> dict[str, Any]:
        """``function(*shared, *own)`` for each unit that has no result yet.

        Args:
            function: A function at the top level of a module.
            shared: Arguments of all units.
            units: Their own arguments, by name.
            executor: Where they run; None: here, one after another.
            done: Called when a unit has ended.

        Returns:
            Results by name, in the order of ``units``.

        Raises:
            TypeError: If the arguments cannot be sent to another process.
            WorkerLostError: If a worker died. All other results are kept.
        """
        for name in units:
            if self.directory is not None and name not in self.results:
                with contextlib.suppress(FileNotFoundError):
                    self.results[name] = load_state(self.directory / name, "directory")["result"]
        waiting = {name: own for name, own in units.items() if name not in self.results}
        for _ in range(len(units) - len(waiting)):
            done()
        if executor is None:
            for name, own in waiting.items():
                self._keep(name, function(*shared, *own))
                done()
        else:
            self._distribute(function, shared, waiting, executor, done)
        return {name: self.results[name] for name in units}

    def _distribute(
        self,
        function: Callable[..., Any],
        shared: tuple[Any, ...],
        waiting: Mapping[str, tuple[Any, ...]],
        executor: Executor,
        done: Callable[[], object],
    ) -> None:
        common = _sent((function, shared, torch.get_default_dtype()))
        futures: dict[Future[Any], str] = {}
        failures: dict[str, Exception] = {}
        hints: list[tuple[type[Warning], str]] = []
        broken: Exception | None = None
        for name, own in waiting.items():
            try:
                futures[executor.submit(_run, common, _sent(own))] = name
            except BrokenExecutor as error:
                broken = error
                break
        try:
            for future in concurrent.futures.as_completed(futures):
                name = futures[future]
                try:
                    result, warned = pickle.loads(future.result())
                    self._keep(name, result)
                    hints += [(category, f"{said} (of the {self.kind} {name!r})") for category, said in warned]
                except BrokenExecutor as error:
                    broken = error
                except Exception as error:
                    failures[name] = error
                done()
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            raise
        lost = [name for name in waiting if name not in self.results and name not in failures]
        if broken is not None:
            raise WorkerLostError(self._explained(lost), lost) from broken
        for name in [name for name in waiting if name in failures]:  # in order, not as they ended
            failure = failures[name]
            failure.add_note(f"executor: this was the {self.kind} {name!r}. {self._kept()}")
            raise failure
        for category, said in hints:
            warnings.warn(said, category, stacklevel=6)

    def _explained(self, lost: Sequence[str]) -> str:
        named = ", ".join(map(repr, lost[:_NAMED])) + ("" if len(lost) <= _NAMED else f" and {len(lost) - _NAMED} more")
        return (
            f"executor: a worker process died (killed, out of memory, or crashed), and its pool with it. Without a "
            f"result: {self.kind} {named}, of which the first ones were running. {self._kept()}"
        )

    def _kept(self) -> str:
        count = f"{len(self.results)} others are finished"
        if self.directory is None:
            return f"{count}; with directory= they would be kept for a call with resume=True."
        return f"{count} and kept in {self.directory}: call again with a new executor and resume=True for the rest."

    def _keep(self, name: str, result: Any) -> None:
        self.results[name] = result
        if self.directory is not None:
            save_state(self.directory / name, {"result": result})


def _run(common: bytes, own: bytes) -> bytes:
    """Runs a unit, in whatever process this is; in threads one after another, which have one random state."""
    with exclusive():
        function, shared, dtype = pickle.loads(common)
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)
            with _warned() as found:
                result = function(*shared, *pickle.loads(own))
            return pickle.dumps((result, [(warning.category, str(warning.message)) for warning in found]))
        finally:
            torch.set_default_dtype(before)


@contextlib.contextmanager
def _warned() -> Iterator[list[warnings.WarningMessage]]:
    """Warnings of the block, for the caller to repeat; none in a thread, where recording is not safe."""
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def _sent(value: Any) -> bytes:
    """A value as bytes, by plain pickle; functions that it cannot send by cloudpickle, where that is installed."""
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        try:
            by_value = importlib.import_module("cloudpickle")
            found: bytes = by_value.dumps(value)
        except Exception:  # it is not there, or cannot do it either
            raise TypeError(
                f"executor: what the units need cannot be sent to another process ({error}); define functions at the "
                "top level of a module instead of by lambda, or install cloudpickle."
            ) from error
        return found
