"""Shards: rows written in place are read back, whatever the precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyrobnn.sampling.sgmcmc.shards import create_shard, read_shard, write_row


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_are_read_back(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    draws, energy = torch.randn(4, 2, 3).to(dtype), torch.randn(4, 2).to(dtype)
    create_shard(path, 4, {"draws": draws[0], "stat.energy": energy[0]})
    for row in (2, 0, 1):
        write_row(path, row, {"draws": draws[row], "stat.energy": energy[row]})
    found = read_shard(path, 3)
    assert torch.equal(found["draws"], draws[:3])
    assert torch.equal(found["stat.energy"], energy[:3])
    assert not read_shard(path, 4)["draws"][3].any()


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    create_shard(path, 2, {"draws": torch.zeros(3)})
    for row, size in ((0, 4), (2, 3)):
        with pytest.raises(ValueError, match="is no file of 2 such draws"):
            write_row(path, row, {"draws": torch.zeros(size)})
