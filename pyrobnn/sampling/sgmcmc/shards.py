"""Draws on disk: safetensors files of a few draws each, written in place one draw at a time.

A shard holds tensors whose first dimension counts its draws. It is created at full size and filled row by row, so a
draw is written once. The state file of the run, which is written afterward, has the number of valid rows, so the shards
of a killed run are valid up to the last recorded draw.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["create_shard", "read_shard", "write_row"]


def create_shard(path: Path, rows: int, example: Mapping[str, Tensor]) -> None:
    """Writes a file of zeros, ``{name: [rows, *shape]}`` for rows like ``example``."""
    safetensors.torch.save_file({n: torch.zeros(rows, *v.shape, dtype=v.dtype) for n, v in example.items()}, path)


def write_row(path: Path, row: int, values: Mapping[str, Tensor]) -> None:
    """Writes one row of each tensor of a shard.

    Raises:
        ValueError: If the file is no shard of such rows.
    """
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name, value in values.items():
            first, last = header[name]["data_offsets"]
            rows = header[name]["shape"][0]
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            if len(data) * rows != last - first or row >= rows:
                raise ValueError(f"directory: {path} is no file of {rows} such draws; it was not written by this run.")
            file.seek(8 + length + first + row * len(data))
            file.write(data)


def read_shard(path: Path, rows: int) -> dict[str, Tensor]:
    """The first ``rows`` rows of each tensor; memory-mapped, so values are read from the file at access."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name)[:rows] for name in file.keys()}  # noqa: SIM118 (no mapping)
