"""Shards: rows written in place are read back, whatever the precision, and damage to them is noticed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrobnn.core.files import CheckpointError
from pyrobnn.sampling.sgmcmc.shards import Shard, read_shard


def filled(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Shard, torch.Tensor, torch.Tensor]:
    """Three rows of four."""
    draws, energy = torch.randn(4, 2, 3).to(dtype), torch.randn(4, 2).to(dtype)
    shard = Shard.create(path, 4, {"draws": draws[0], "stat.energy": energy[0]})
    for row in range(3):
        shard.write(row, {"draws": draws[row], "stat.energy": energy[row]})
    return shard, draws, energy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_are_read_back(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    shard, draws, energy = filled(path, dtype)
    for record in (shard.record(), Shard.reopen(path, 3, shard.record()).record()):
        found = read_shard(path, 3, record)
        assert torch.equal(found["draws"], draws[:3])
        assert torch.equal(found["stat.energy"], energy[:3])


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    shard, *_ = filled(tmp_path / "some.safetensors")
    for values in ({"draws": torch.zeros(4)}, {"other": torch.zeros(2, 3)}):
        with pytest.raises(ValueError, match=r"^directory: .* holds no such draws"):
            shard.write(3, values)


def test_every_flipped_bit_of_what_is_valid_is_noticed(tmp_path: Path) -> None:
    """Header and three rows; the fourth is not valid yet and may hold anything."""
    path, generator = tmp_path / "some.safetensors", random.Random(0)
    shard, draws, _ = filled(path)
    content, record = path.read_bytes(), shard.record()
    kept = 0
    for place in {*range(0, 40), *generator.sample(range(len(content)), 150)}:
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_shard(path, 3, record)
        except CheckpointError as error:
            assert str(error).startswith("directory: ")  # noqa: PT017 (most raise it, some need not)
        else:
            kept += 1
            assert torch.equal(found["draws"], draws[:3])
    assert 0 < kept < 60, "bits of the fourth row only, 32 of the file's 300 bytes"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"0"),
        lambda path: path.write_bytes(path.read_bytes()[:9]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to(path.name)),
    ],
)
def test_files_that_are_no_shards_are_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "some.safetensors"
    shard, *_ = filled(path)
    damage(path)
    for read in (read_shard, Shard.reopen):
        with pytest.raises(CheckpointError, match=r"^directory: "):
            read(path, 3, shard.record())


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [10**13, 2, 3]},
        {"data_offsets": [0, 10**13]},
        {"data_offsets": [96, 0]},
        {"data_offsets": "x"},
        {"dtype": None},
        {"shape": [-1]},
    ],
)
def test_headers_that_declare_something_else_take_no_memory(tmp_path: Path, entry: dict[str, Any]) -> None:
    path = tmp_path / "some.safetensors"
    shard, *_ = filled(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["draws"].update(entry)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"^directory: the draws in .* are damaged|^directory: the 3 draws"):
        read_shard(path, 3, shard.record())
