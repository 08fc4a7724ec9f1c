"""Readers beside writers, generations, what a full disk and a read-only directory leave."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrobnn.core import documents
from pyrobnn.core.files import CheckpointError
from pyrobnn.core.storage import load_state, save_state


def files(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def test_readers_beside_two_writers_never_fail(tmp_path: Path) -> None:
    """Each load gives the tree of one save, whole."""
    save_state(tmp_path, {"value": 0, "tensor": torch.zeros(5000)})
    errors: list[Exception] = []

    def write(offset: int) -> None:
        try:
            for value in range(offset, offset + 25):
                save_state(tmp_path, {"value": value, "tensor": torch.full((5000,), float(value))})
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(offset,)) for offset in (100, 200)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = load_state(tmp_path)
        assert torch.equal(found["tensor"], torch.full((5000,), float(found["value"])))
    assert not errors


@pytest.mark.parametrize("saves", [1, 2, 3])
def test_a_document_that_was_replaced_meanwhile_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """One save keeps the tensors that the reader has begun with; after more of them it begins again."""
    save_state(tmp_path, torch.tensor(0.0))
    original, calls = documents._tensors, []

    def slow(*args: Any) -> Any:
        calls.append(0)
        if len(calls) == 1:
            for value in range(1, saves + 1):
                save_state(tmp_path, torch.tensor(float(value)))
        return original(*args)

    monkeypatch.setattr(documents, "_tensors", slow)
    assert float(load_state(tmp_path)) == (0.0 if saves == 1 else saves)
    assert len(calls) == (1 if saves == 1 else 2)


def test_two_generations_are_kept(tmp_path: Path) -> None:
    for value in range(5):
        save_state(tmp_path, torch.tensor(value))
        assert len(files(tmp_path)) == (2 if value == 0 else 3)
    assert int(load_state(tmp_path)) == 4


def test_every_entry_has_a_digest(tmp_path: Path) -> None:
    save_state(tmp_path, {"a": {"b": 1}, "c": [2], "d": {}})
    document = json.loads((tmp_path / "state.json").read_text())
    names = [name for name in document["digests"] if name.startswith("state")]
    assert names == ["state.a", "state.c", "state.d"]
    document["state"]["a"]["b"] = 2
    (tmp_path / "state.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"the entry 'state\.a' is not what was written"):
        load_state(tmp_path)


def test_a_document_printed_otherwise_is_the_same(tmp_path: Path) -> None:
    save_state(tmp_path, {"a": {"b": 1.5}})
    document = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(document, indent=7))
    assert load_state(tmp_path) == {"a": {"b": 1.5}}


def test_a_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    """A sparse file of 10 TB would take hours to digest."""
    save_state(tmp_path, torch.zeros(3))
    (data,) = tmp_path.glob("*.safetensors")
    with data.open("r+b") as file:
        file.truncate(10**13)
    with pytest.raises(CheckpointError, match=r"is not the file that was written"):
        load_state(tmp_path)
    with (tmp_path / "state.json").open("r+b") as file:
        file.truncate(10**13)
    with pytest.raises(CheckpointError, match=r"state\.json has 10000000000000 bytes"):
        load_state(tmp_path)
