"""Draws on disk: safetensors files of a few draws each, written in place one draw at a time.

A shard holds tensors whose first dimension counts its draws. It is created at full size and filled row by row, so a
draw is written once. The state file of the run, which is written afterward, has the number of valid rows and a digest
of them for each tensor, SHA-256 over the file's header and the rows, which is carried on as rows are added. So the
shards of a killed run are valid up to the last recorded draw, and what changed in them since is noticed when they are
read.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyrobnn.core import schema
from pyrobnn.core.files import CheckpointError, check_regular

__all__ = ["RECORD", "Shard", "read_shard"]

RECORD = schema.record({"rows": schema.whole(1), "digests": schema.table(schema.text)})
"""What the state file says about a shard."""

_CHUNK = 2**20
_MAX_HEADER = 2**24
_TENSOR = schema.record(
    {"dtype": schema.text, "shape": schema.items(schema.whole(0)), "data_offsets": schema.items(schema.whole(0), 2)}
)


class _Region(NamedTuple):
    """Where a tensor is in the file: its first byte, and the bytes of a row."""

    start: int
    row: int


class Shard:
    """A file that is being filled.

    Args:
        path: The file.
        rows: How many draws it has room for.
        regions: Where its tensors are.
        hashes: Their digests so far.
    """

    def __init__(self, path: Path, rows: int, regions: dict[str, _Region], hashes: dict[str, Any]) -> None:
        self.path, self.rows, self._regions, self._hashes = path, rows, regions, hashes

    @classmethod
    def create(cls, path: Path, rows: int, example: Mapping[str, Tensor]) -> Shard:
        """Writes a file of zeros, ``{name: [rows, *shape]}`` for rows like ``example``.

        Raises:
            OSError: If it cannot be written; nothing is left of it then.
        """
        check_regular(path, "directory")
        zeros = {name: torch.zeros(rows, *value.shape, dtype=value.dtype) for name, value in example.items()}
        try:
            safetensors.torch.save_file(zeros, path)
        except (SafetensorError, OSError) as error:
            path.unlink(missing_ok=True)
            raise OSError(str(error)) from error
        return cls(path, rows, *_opened(path, rows))

    @classmethod
    def reopen(cls, path: Path, used: int, record: Mapping[str, Any]) -> Shard:
        """A file of an earlier run, of which ``used`` draws are valid.

        Raises:
            CheckpointError: If they are not what was recorded.
        """
        return cls(path, record["rows"], *_verified(path, used, record))

    def write(self, row: int, values: Mapping[str, Tensor]) -> None:
        """Writes one row of each tensor, the one after the last.

        Raises:
            OSError: If the file system refuses.
            ValueError: If the file holds no such rows.
        """
        with self.path.open("r+b", buffering=0) as file:
            for name, value in values.items():
                data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                region = self._regions.get(name)
                if region is None or region.row != len(data):
                    raise ValueError(f"directory: {self.path} holds no such draws; it was not written by this run.")
                file.seek(region.start + row * region.row)
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
                self._hashes[name].update(data)

    def record(self) -> dict[str, Any]:
        """What the state file is to say about it."""
        return {"rows": self.rows, "digests": {name: found.hexdigest() for name, found in self._hashes.items()}}


def read_shard(path: Path, used: int, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The first ``used`` rows of each tensor, checked; memory-mapped, so values are read from the file at access.

    Raises:
        CheckpointError: If they are not what was recorded.
    """
    _verified(path, used, record)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name)[:used] for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"directory: {path} is damaged: {error}.") from error


def _verified(path: Path, used: int, record: Mapping[str, Any]) -> tuple[dict[str, _Region], dict[str, Any]]:
    """Reads the valid rows and compares digests."""
    if check_regular(path, "directory") is None:
        raise CheckpointError(f"directory: the draws in {path} are missing.")
    regions, hashes = _opened(path, record["rows"])
    with path.open("rb") as file:
        for name, region in regions.items():
            file.seek(region.start)
            left = used * region.row
            while left and (data := file.read(min(left, _CHUNK))):
                hashes[name].update(data)
                left -= len(data)
    for name in {**record["digests"], **hashes}:
        if name not in hashes or hashes[name].hexdigest() != record["digests"].get(name):
            raise CheckpointError(
                f"directory: the {used} draws in {path} are damaged: {name!r} is not what was written."
            )
    return regions, hashes


def _opened(path: Path, rows: int) -> tuple[dict[str, _Region], dict[str, Any]]:
    """Regions of a file and the beginnings of their digests, which are those of the header."""
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        text = file.read(min(length, _MAX_HEADER))
    try:
        if len(text) != length or not length:
            raise ValueError("it ends within its header")
        header = json.loads(text)
        schema.table(schema.anything)(header, "header")
        regions, end = {}, 8 + length
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            _TENSOR(entry, f"header.{name}")
            (start, stop), shape = entry["data_offsets"], entry["shape"]
            if stop < start or shape[:1] != [rows] or (stop - start) % rows:
                raise ValueError(f"its {name!r} has shape {shape}, expected {rows} draws")
            regions[name] = _Region(8 + length + start, (stop - start) // rows)
            end = max(end, 8 + length + stop)
        if path.stat().st_size != end:
            raise ValueError(f"it has {path.stat().st_size} bytes, expected {end}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"directory: the draws in {path} are damaged: {error}.") from error
    return regions, {name: hashlib.sha256(first + text) for name in regions}
