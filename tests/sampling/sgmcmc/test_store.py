"""Draws on disk: resumption bit for bit, budgets, other runs."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrobnn.checkpoint import CheckpointError, DirectoryInUseError
from pyrobnn.core.documents import sealed
from pyrobnn.core.schedules import PolynomialDecay
from pyrobnn.core.storage import load_state, save_state
from pyrobnn.sampling import (
    SGHMC,
    SGLD,
    SGNHT,
    Cyclical,
    PreconditionedSGLD,
)
from tests.sampling.models import classifier, loader, quick, rows


@pytest.mark.parametrize(
    "kernel",
    [
        SGLD(PolynomialDecay(1e-3, 10.0)),
        PreconditionedSGLD(1e-3),
        SGHMC(1e-4),
        SGNHT(1e-4),
        Cyclical(SGHMC(1e-4), cycle_length=4),
    ],
    ids=lambda kernel: type(kernel).__name__,
)
def test_a_killed_run_is_continued_bit_for_bit(kernel: Any, tmp_path: Path) -> None:
    """Killed in the third pass over a shuffled loader; it loses one thinning interval at most."""
    options = {"kernel": kernel, "num_samples": 6, "warmup_steps": 3, "thinning": 2, "num_chains": 3, "seed": 8}
    expected = quick(classifier(), loader(), **options)
    whole = quick(classifier(), loader(), **options, directory=tmp_path / "whole")
    assert torch.equal(whole.blocks[0], expected.blocks[0])

    class Killed(Exception):
        pass

    class Fatal:
        """A loader that dies."""

        def __init__(self, batches: int) -> None:
            self.inner, self.left = loader(), batches
            self.dataset, self.sampler = self.inner.dataset, self.inner.sampler

        def __iter__(self) -> Iterator[Any]:
            for batch in self.inner:
                if self.left == 0:
                    raise Killed
                self.left -= 1
                yield batch

    with pytest.raises(Killed):
        quick(classifier(), Fatal(8), **options, directory=tmp_path / "run")
    assert load_state(tmp_path / "run")["run"]["step"] >= 8 - options["thinning"]
    torch.manual_seed(1234)  # a new process has another random state
    resumed = quick(classifier(), loader(), **options | {"seed": 99}, directory=tmp_path / "run", resume=True)
    assert torch.equal(resumed.blocks[0], expected.blocks[0])
    for name, value in expected.stats.items():
        assert torch.equal(resumed.stats[name], value)


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    expected = quick(classifier(), loader(), num_samples=7)
    quick(classifier(), loader(), num_samples=2, directory=tmp_path)
    longer = quick(classifier(), loader(), num_samples=7, directory=tmp_path, resume=True)
    assert torch.equal(longer.blocks[0], expected.blocks[0])
    again = quick(classifier(), loader(), num_samples=7, directory=tmp_path, resume=True)
    assert torch.equal(again.blocks[0], expected.blocks[0])


def test_draws_beyond_the_budget_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrobnn.sampling.sgmcmc.store._SHARD_BYTES", 2 * 2 * 31 * 4)
    model = classifier()
    expected = quick(model, num_samples=5, num_chains=2)
    guide = quick(model, num_samples=5, num_chains=2, directory=tmp_path, max_bytes=1)
    assert [len(block) for block in guide.blocks] == [2, 2, 1]
    assert len(list(tmp_path.glob("draws-*.safetensors"))) == 3
    for name, value in expected.by_chain().items():
        assert torch.equal(guide.by_chain()[name], value)
    with pytest.raises(ValueError, match=r"max_bytes: 5 draws of 2 chains.*directory="):
        quick(model, num_samples=5, num_chains=2, max_bytes=1)


def test_other_settings_are_not_resumed(tmp_path: Path) -> None:
    quick(classifier(), directory=tmp_path)
    with pytest.raises(ValueError, match=r"holds a run already; pass resume=True"):
        quick(classifier(), directory=tmp_path)
    for changed, name in (
        ({"kernel": SGLD(2e-3)}, "kernel"),
        ({"thinning": 2}, "thinning"),
        ({"num_chains": 2}, "num_chains"),
    ):
        with pytest.raises(ValueError, match=f"resume: the run in .* had {name} "):
            quick(classifier(), directory=tmp_path, resume=True, **changed)


def test_other_data_are_not_resumed(tmp_path: Path) -> None:
    """Of another number, also if the model was built anew for it, or of another dtype."""
    x, y = rows()
    quick(classifier(), (x, y), directory=tmp_path / "tuple")
    quick(classifier(), loader(), num_samples=5, directory=tmp_path / "loader")
    with pytest.raises(ValueError, match=r"resume: the run in .* had num_data 24, but now it is 20"):
        quick(classifier(num_data=20), (x[:20], y[:20]), num_samples=6, directory=tmp_path / "tuple", resume=True)
    for name in ("tuple", "loader"):
        data: Any = (x, y.int()) if name == "tuple" else [(x, y.int())]
        with pytest.raises(ValueError, match=r"^data: the targets of a batch had the kind torch.int64, but now it is"):
            quick(classifier(), data, num_samples=6, directory=tmp_path / name, resume=True)

    def own(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y.float())

    quick(own, (x, y), directory=tmp_path / "own")
    with pytest.raises(ValueError, match=r"^data: .* of a batch had the shape \[24, 3\], but now it is \[20, 3\]"):
        quick(own, (x[:20], y[:20]), num_samples=6, directory=tmp_path / "own", resume=True)


# ------------------------------------------------------------------------------------------------ damage and locks


def edit_state(path: Path, change: Callable[[Any], object]) -> None:
    """Changes the recorded state and its digests, as another version of the library might."""
    document = json.loads((path / "state.json").read_text())
    change(document["state"])
    (path / "state.json").write_text(json.dumps(sealed(document)))


def test_a_flipped_bit_of_a_draw_is_noticed(tmp_path: Path) -> None:
    quick(classifier(), directory=tmp_path)
    (shard,) = tmp_path.glob("draws-*")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 64  # the exponent of a weight
    shard.write_bytes(content)
    for draws in (3, 6):
        with pytest.raises(CheckpointError, match=r"^directory: the 3 draws in .* are damaged: 'draws' is not"):
            quick(classifier(), num_samples=draws, directory=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(kept=10**13), r"state\.kept: expected at most 3 draws"),
        (lambda s: s.update(kept=-1), r"state\.kept: expected an int of at least 0"),
        (lambda s: s["shards"][0].update(rows=10**13), "are damaged"),
        (lambda s: s["shards"][0].update(rows=0), r"state\.shards\[0\]\.rows: expected an int of at least 1"),
        (lambda s: s["shards"][0].update(digests={}), "is not what was written"),
        (lambda s: s.pop("run"), r"state\.run: expected an entry"),
        (lambda s: s["run"].pop("step"), r"state\.run\.step: expected an entry"),
        (lambda s: s["run"].update(noise=3), r"state\.run\.noise: expected a tensor"),
        (lambda s: s["run"].update(noise=s["run"]["random"]["numpy"][1]), "cannot be restored"),
        (lambda s: s["run"].update(flat=s["run"]["noise"]), r"cannot be restored: expected tensors \{'flat'"),
        (lambda s: s["run"].update(state={"x": s["run"]["noise"]}), "cannot be restored: expected tensors"),
        (lambda s: s["run"]["batches"].update(index="x"), r"state\.run\.batches\.index: "),
        (lambda s: s["run"]["random"].update(python=[3]), "cannot be restored"),
        (lambda s: s["run"]["random"].pop("numpy"), "cannot be restored"),
    ],
)
def test_a_state_of_no_run_is_refused(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    quick(classifier(), directory=tmp_path)
    edit_state(tmp_path, change)
    with pytest.raises(CheckpointError, match=rf"^directory: .*{message}"):
        quick(classifier(), num_samples=6, directory=tmp_path, resume=True)


def test_every_edit_of_a_recorded_state_is_refused(tmp_path: Path) -> None:
    quick(classifier(), directory=tmp_path)
    document = json.loads((tmp_path / "state.json").read_text())

    def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        yield place
        for key, item in list(inner)[:4]:
            yield from leaves(item, (*place, key))

    for place in leaves(document["state"], ("state",)):
        for new in (None, "x", -1):
            edited = copy.deepcopy(document)
            at = edited
            for key in place[:-1]:
                at = at[key]
            if at[place[-1]] == new:
                continue
            at[place[-1]] = new
            (tmp_path / "state.json").write_text(json.dumps(edited))
            with pytest.raises(CheckpointError, match=rf"^directory: .*{'.'.join(map(str, place[:2]))}"):
                load_state(tmp_path, "directory")


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, {"epoch": 3})
    with pytest.raises(CheckpointError, match=r"^directory: .* holds no state of a sampling run: state\.kept"):
        quick(classifier(), directory=tmp_path, resume=True)
    for directory in ("", " "):
        with pytest.raises(ValueError, match=r"^directory: expected the path of a directory"):
            quick(classifier(), directory=directory)


class During:
    """A loader that does something before each batch."""

    def __init__(self, action: Callable[[int], object]) -> None:
        self.inner, self.action, self.count = loader(), action, 0
        self.dataset, self.sampler = self.inner.dataset, self.inner.sampler

    def __iter__(self) -> Iterator[Any]:
        for batch in self.inner:
            self.count += 1
            self.action(self.count)
            yield batch


def test_a_second_sampler_in_a_directory_is_refused(tmp_path: Path) -> None:
    """At the third batch of the first, which goes on undisturbed."""
    refused = []

    def second(count: int) -> None:
        if count == 3:
            for attempt in (
                lambda: quick(classifier(), loader(), directory=tmp_path, num_samples=9, resume=True),
                lambda: save_state(tmp_path, {}),
            ):
                with pytest.raises(DirectoryInUseError, match=rf"by sample in process {os.getpid()} on "):
                    attempt()
                refused.append(count)

    expected = quick(classifier(), loader(), num_samples=5)
    found = quick(classifier(), During(second), num_samples=5, directory=tmp_path)
    assert torch.equal(found.blocks[0], expected.blocks[0])
    assert len(refused) == 2
    assert not list(tmp_path.glob(".*"))


def test_a_reader_beside_a_sampler_gets_what_was_recorded(tmp_path: Path) -> None:
    expected, seen = quick(classifier(), loader(), num_samples=6), []

    def read(count: int) -> None:
        if count > 3:
            have = load_state(tmp_path)["kept"]
            found = quick(classifier(), loader(), num_samples=have, directory=tmp_path, resume=True)
            assert torch.equal(found.blocks[0], expected.blocks[0][:have])
            seen.append(have)

    quick(classifier(), During(read), num_samples=6, directory=tmp_path)
    assert len(set(seen)) > 2


def test_a_finished_run_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a read-only directory."""
    expected = quick(classifier(), directory=tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "replace", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    found = quick(classifier(), directory=tmp_path, resume=True)
    assert torch.equal(found.blocks[0], expected.blocks[0])
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="limits of file size are a POSIX matter")
@pytest.mark.parametrize("what", ["shard", "row", "state"])
def test_a_full_disk_keeps_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Files may not grow beyond 700 bytes from the fourth batch on: no new shard; or writing fails in other places."""
    import resource

    monkeypatch.setattr("pyrobnn.sampling.sgmcmc.store._SHARD_BYTES", 2 * 31 * 4)  # two draws each
    expected = quick(classifier(), loader(), num_samples=7)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(count: int) -> None:
        if count != 4:
            return
        if what == "shard":
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        elif what == "row":
            monkeypatch.setattr(Path, "open", full)
        else:
            monkeypatch.setattr(os, "fsync", full)

    original = Path.open

    def full(path: Any, mode: Any = "", *args: Any, **kwargs: Any) -> Any:
        if mode in ("", "r+b"):
            raise OSError(28, "No space left on device")
        return original(path, mode, *args, **kwargs)

    try:
        with pytest.raises(OSError, match=r"^directory: could not write .*untouched"):
            quick(classifier(), During(fill), num_samples=7, directory=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        monkeypatch.undo()
    have = load_state(tmp_path)["kept"]
    assert have >= 2
    partial = quick(classifier(), loader(), num_samples=have, directory=tmp_path, resume=True)
    assert torch.equal(partial.blocks[0], expected.blocks[0][:have])
    resumed = quick(classifier(), loader(), num_samples=7, directory=tmp_path, resume=True)
    assert torch.equal(resumed.blocks[0], expected.blocks[0])
