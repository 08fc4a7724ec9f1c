"""Storage for the draws of a run: in memory, or in shards in a directory, with the state for resuming."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import schema
from pyrobnn.core.files import CheckpointError, check_directory
from pyrobnn.core.locks import locked
from pyrobnn.core.storage import STATE, described, load_state, write_state
from pyrobnn.guides.chains import Chains
from pyrobnn.sampling.sgmcmc.shards import RECORD, Shard, read_shard

__all__ = ["DiskStore", "MemoryStore"]

_SHARD_BYTES = 2**26
_STATE = schema.record({"kept": schema.whole(0), "shards": schema.items(RECORD), "run": schema.table(schema.anything)})


class MemoryStore:
    """Draws ``[S, C, P]`` in memory.

    Args:
        num_samples: Capacity: draws S.
        flat: The chains' values ``[C, P]``.

    Attributes:
        kept: Draws kept so far.
    """

    def __init__(self, num_samples: int, flat: Tensor) -> None:
        self.draws = flat.new_empty(num_samples, *flat.shape)
        self.stats: dict[str, Tensor] = {}
        self.kept = 0

    def keep(self, flat: Tensor, stats: Mapping[str, Tensor]) -> None:
        """Adds one draw of all chains ``[C, P]`` and its statistics ``{name: [C]}``."""
        self.draws[self.kept] = flat
        for name, value in stats.items():
            if name not in self.stats:
                self.stats[name] = value.new_empty(len(self.draws), *value.shape)
            self.stats[name][self.kept] = value
        self.kept += 1

    def chains(self, model: Callable[..., Any], example: tuple[Any, ...] | None) -> Chains:
        """The draws as a guide."""
        draws = self.draws if self.kept == len(self.draws) else self.draws[: self.kept].clone()
        stats = {name: value[: self.kept].T.contiguous() for name, value in self.stats.items()}
        return Chains(model, draws.shape[1], self.kept, [draws], stats=stats, example=example)


class DiskStore:
    """Draws in shards, and the run's state.

    Args:
        directory: The directory; whoever writes holds its lock (:meth:`locked`).
        num_samples: Draws of the whole run, which determine the size of shards.
        max_bytes: Largest size of all draws at which :meth:`chains` reads them into memory.
    """

    def __init__(self, directory: str | Path, num_samples: int, max_bytes: int) -> None:
        self.directory = check_directory("directory", directory)
        self.num_samples, self.max_bytes = num_samples, max_bytes
        self.kept = 0
        self._records: list[dict[str, Any]] = []  # of all shards
        self._shard: Shard | None = None  # the last one, once it is written to

    @property
    def exists(self) -> bool:
        """Whether the directory holds a run."""
        return os.path.lexists(self.directory / STATE.document)

    def locked(self) -> AbstractContextManager[None]:
        """Makes this process the only writer in the directory."""
        return locked(self.directory, STATE.document, "sample", argument="directory")

    def keep(self, flat: Tensor, stats: Mapping[str, Tensor]) -> None:
        """Writes one draw of all chains ``[C, P]`` and its statistics ``{name: [C]}``; valid after :meth:`record`.

        Raises:
            OSError: If writing fails; what was recorded before stays readable, and can be resumed from.
        """
        row = {"draws": flat} | {f"stat.{name}": value for name, value in stats.items()}
        used = self.kept - self._before
        number = len(self._records) - 1
        try:
            if not self._records or used == self._records[-1]["rows"]:
                size = max(1, min(self.num_samples - self.kept, _SHARD_BYTES // flat.nbytes))
                number, used = number + 1, 0
                self._shard = Shard.create(self._path(number), size, row)
                self._records.append(self._shard.record())
            elif self._shard is None:
                self._shard = Shard.reopen(self._path(number), used, self._records[-1])
            self._shard.write(used, row)
        except OSError as error:
            raise OSError(
                f"directory: could not write draw {self.kept + 1} to {self._path(number)} ({error}); those recorded "
                "before are untouched: make room, then continue with resume=True."
            ) from error
        self.kept += 1
        self._records[-1] = self._shard.record()

    def record(self, state: dict[str, Any]) -> None:
        """Writes the run's state; all draws written so far are valid then.

        Raises:
            OSError: If writing fails; what was recorded before stays readable, and can be resumed from.
        """
        write_state(self.directory, {"kept": self.kept, "shards": self._records, "run": state}, "directory")

    def recorded(self) -> dict[str, Any]:
        """The last recorded state, to which the store is reset.

        Raises:
            FileNotFoundError: If there is none.
            CheckpointError: If it is damaged or of another kind.
        """
        state = load_state(self.directory, "directory")
        with described("directory", self.directory, "sampling"):
            _STATE(state, "state")
            rows = [record["rows"] for record in state["shards"]]
            if not sum(rows[:-1]) <= state["kept"] <= sum(rows):
                raise schema.Mismatch("state.kept", f"at most {sum(rows)} draws in shards of {rows}", state["kept"])
        self.kept, self._records, self._shard = state["kept"], state["shards"], None
        return state["run"]

    @property
    def _before(self) -> int:
        """Draws in all shards but the last."""
        return sum(record["rows"] for record in self._records[:-1])

    def last(self) -> Tensor:
        """The values ``[C, P]`` of the draw kept last.

        Raises:
            CheckpointError: If the draws are damaged.
        """
        number, used = len(self._records) - 1, self.kept - self._before
        if not used:
            raise CheckpointError(f"directory: {self.directory} is damaged: it has no draw to continue from.")
        return self._read(number, used)["draws"][-1].clone()

    def chains(self, model: Callable[..., Any], example: tuple[Any, ...] | None) -> Chains:
        """The draws as a guide: in memory if they fit, else memory-mapped from the files.

        All draws are read once, to compare their digests.

        Raises:
            CheckpointError: If the draws are damaged.
        """
        blocks, stats, left = [], [], self.kept
        for number, record in enumerate(self._records):
            if rows := min(record["rows"], left):
                tensors = self._read(number, rows)
                blocks.append(tensors.pop("draws"))
                stats.append(tensors)
                left -= rows
        if sum(block.nbytes for block in blocks) <= self.max_bytes:
            blocks = [torch.cat(blocks)]
        figures = {
            name.removeprefix("stat."): torch.cat([part[name] for part in stats]).T.contiguous() for name in stats[0]
        }
        return Chains(model, blocks[0].shape[1], self.kept, blocks, stats=figures, example=example)

    def _read(self, number: int, used: int) -> dict[str, Tensor]:
        return read_shard(self._path(number), used, self._records[number])

    def _path(self, number: int) -> Path:
        return self.directory / f"draws-{number:05}.safetensors"
