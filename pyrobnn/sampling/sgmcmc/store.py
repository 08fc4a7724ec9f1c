"""Storage for the draws of a run: in memory, or in shards in a directory, with the state for resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.storage import load_state, save_state
from pyrobnn.guides.chains import Chains
from pyrobnn.sampling.sgmcmc.shards import create_shard, read_shard, write_row

__all__ = ["DiskStore", "MemoryStore"]

_SHARD_BYTES = 2**26


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
        directory: The directory.
        num_samples: Draws of the whole run, which determine the size of shards.
        max_bytes: Largest size of all draws at which :meth:`chains` reads them into memory.
    """

    def __init__(self, directory: str | Path, num_samples: int, max_bytes: int) -> None:
        self.directory = Path(directory)
        self.num_samples, self.max_bytes = num_samples, max_bytes
        self.kept = 0
        self._sizes: list[int] = []  # of each shard, when it was created

    @classmethod
    def exists(cls, directory: str | Path) -> bool:
        """Whether the directory holds a run."""
        return (Path(directory) / "state.json").exists()

    def keep(self, flat: Tensor, stats: Mapping[str, Tensor]) -> None:
        """Writes one draw of all chains ``[C, P]`` and its statistics ``{name: [C]}``; valid after :meth:`record`."""
        row = {"draws": flat} | {f"stat.{name}": value for name, value in stats.items()}
        used = self.kept - sum(self._sizes[:-1])
        if not self._sizes or used == self._sizes[-1]:
            size = max(1, min(self.num_samples - self.kept, _SHARD_BYTES // flat.nbytes))
            self._sizes.append(size)
            used = 0
            self.directory.mkdir(parents=True, exist_ok=True)
            create_shard(self._path(len(self._sizes) - 1), size, row)
        write_row(self._path(len(self._sizes) - 1), used, row)
        self.kept += 1

    def record(self, state: dict[str, Any]) -> None:
        """Writes the run's state; all draws written so far are valid then."""
        save_state(self.directory, {"kept": self.kept, "sizes": self._sizes, "run": state})

    def recorded(self) -> dict[str, Any]:
        """The last recorded state, to which the store is reset.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged or of another kind.
        """
        state = load_state(self.directory)
        if not isinstance(state, dict) or set(state) != {"kept", "sizes", "run"}:
            raise ValueError(f"directory: {self.directory} holds the state of something else than a sampling run.")
        self.kept, self._sizes = state["kept"], list(state["sizes"])
        return state["run"]

    def last(self) -> Tensor:
        """The values ``[C, P]`` of the draw kept last."""
        number = len(self._sizes) - 1
        used = self.kept - sum(self._sizes[:-1])
        return read_shard(self._path(number), used)["draws"][-1].clone()

    def chains(self, model: Callable[..., Any], example: tuple[Any, ...] | None) -> Chains:
        """The draws as a guide: in memory if they fit, else memory-mapped from the files."""
        blocks, stats, left = [], [], self.kept
        for number, size in enumerate(self._sizes):
            if rows := min(size, left):
                tensors = read_shard(self._path(number), rows)
                blocks.append(tensors.pop("draws"))
                stats.append(tensors)
                left -= rows
        if sum(block.nbytes for block in blocks) <= self.max_bytes:
            blocks = [torch.cat(blocks)]
        figures = {
            name.removeprefix("stat."): torch.cat([part[name] for part in stats]).T.contiguous() for name in stats[0]
        }
        return Chains(model, blocks[0].shape[1], self.kept, blocks, stats=figures, example=example)

    def _path(self, number: int) -> Path:
        return self.directory / f"draws-{number:05}.safetensors"
