"""Whatever happens to a file, loading refuses it in words that name the place, or gives exactly what was saved."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import random
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods, priors
from pyrobnn.checkpoint import CheckpointError, load, load_state, save, save_state
from pyrobnn.core.documents import sealed
from pyrobnn.guides import MAP, Chains, Composite, DeltaMixture, Guide, LowRankNormal, MCDropout, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.reporting.fingerprint import saved_state

Place = tuple[str | int, ...]
OWN_WORDS = re.compile(r"^(path|net|model|guide|likelihood): ")


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


RULES = [
    ("0.weight", priors.horseshoe(0.3)),
    ("0.bias", priors.latent_scale()),
    ("1.weight", priors.scale_mixture()),
    ("1.bias", priors.learned_scale(0.7)),
]


def saved(path: Path) -> tuple[SupervisedModel, Guide]:
    """A checkpoint with as much in it as there can be."""
    model = SupervisedModel(net(), likelihoods.HeteroscedasticNormal(0.1), RULES, num_data=64)
    rules = [("*0*", functools.partial(DeltaMixture, num_members=2)), ("*", MAP)]
    save(path, model, guide := Composite(model, rules))
    return model, guide


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Every place in a document, from the whole to the leaves."""
    if place:
        yield place
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*place, index))


def edited(document: Any, place: Place, change: Callable[[Any, Any], None]) -> Any:
    copied = copy.deepcopy(document)
    at = copied
    for key in place[:-1]:
        at = at[key]
    change(at, place[-1])
    return copied


CHANGES: dict[str, Callable[[Any, Any], None]] = {
    f"{value!r:.20}": functools.partial(lambda new, at, key: at.__setitem__(key, new), value)
    for value in (None, "x", -1, 0, [], {}, True, 10**13, 10**400, float("inf"), [10**13], {"x": {}})
} | {"deleted": lambda at, key: at.__delitem__(key)}


def some_changes(generator: random.Random) -> list[tuple[str, Callable[[Any, Any], None]]]:
    return [("deleted", CHANGES["deleted"]), *generator.sample(list(CHANGES.items()), 2)]


def outcome(path: Path, **given: Any) -> list[Tensor] | Exception:
    try:
        model, guide = load(path, net(), **given)
    except Exception as error:  # what may be raised is what is tested
        return error
    assert isinstance(model, SupervisedModel)
    settings = torch.tensor([model.num_data, model.likelihood.config()["floor"]])
    return [*saved_state(model).values(), *saved_state(guide).values(), settings]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_an_edited_specification_is_refused_by_its_place(tmp_path: Path) -> None:
    """Every entry, replaced or deleted: the message names the entry, or the one it is in."""
    torch.manual_seed(0)
    model, _ = saved(tmp_path)
    document, generator = json.loads((tmp_path / "spec.json").read_text()), random.Random(1)
    for place in places(document):
        for name, change in some_changes(generator):
            new = edited(document, place, change)
            if json.dumps(new) == json.dumps(document):
                continue
            (tmp_path / "spec.json").write_text(json.dumps(new))
            found = outcome(tmp_path)
            assert isinstance(found, CheckpointError), (place, name, found)
            assert str(found).startswith("path: "), (place, name, found)
            if place[0] not in ("format", "format_version", "digests"):
                assert f"{place[0]}" in str(found), (place, name, found)
                assert len(place) == 1 or f"{place[0]}.{place[1]}" in str(found), (place, name, found)
    (tmp_path / "spec.json").write_text(json.dumps(document))
    found = outcome(tmp_path)
    assert isinstance(found, list)
    assert same(found[: len(saved_state(model))], list(saved_state(model).values()))


def test_a_specification_that_another_program_sealed_is_refused_or_built(tmp_path: Path) -> None:
    """With right digests, what entries say must still be refused in the library's own words, or be possible."""
    torch.manual_seed(0)
    saved(tmp_path)
    document, generator = json.loads((tmp_path / "spec.json").read_text()), random.Random(2)
    for place in places({name: document[name] for name in ("model", "guide", "tensors")}):
        for name, change in some_changes(generator):
            text = json.dumps(sealed(edited(document, place, change)))
            (tmp_path / "spec.json").write_text(text)
            found = outcome(tmp_path)
            if isinstance(found, Exception):
                assert isinstance(found, ValueError | TypeError), (place, name, found)
                assert OWN_WORDS.match(str(found)), (place, name, found)


@pytest.mark.parametrize(
    ("build", "change"),
    [
        (lambda m: LowRankNormal(m, rank=2), {"rank": 10**13}),
        (lambda m: DeltaMixture(m, 2), {"num_members": 10**13}),
        (lambda m: Chains(m, 2, 3), {"num_samples": 10**13, "block_sizes": [10**13]}),
        (lambda m: Chains(m, 2, 3), {"num_samples": 10**13}),
        (lambda m: Chains(m, 2, 3), {"num_chains": 10**13}),
        (lambda m: Chains(m, 2, 3), {"block_sizes": [10**13]}),
        (lambda m: Chains(m, 2, 3), {"block_sizes": "x"}),
        (lambda m: MCDropout(m, 0.5), {"p": [["net.0.weight", 7.0]]}),
        (lambda m: MeanField(m), {"antithetic": True, "unknown": 3}),
    ],
)
def test_declared_sizes_take_no_memory(tmp_path: Path, build: Callable[[Any], Guide], change: dict[str, Any]) -> None:
    model = SupervisedModel(net(), likelihoods.HeteroscedasticNormal(0.1), dist.Normal(0.0, 1.0), num_data=64)
    save(tmp_path, model, build(model))
    document = json.loads((tmp_path / "spec.json").read_text())
    document["guide"]["config"].update(change)
    (tmp_path / "spec.json").write_text(json.dumps(sealed(document)))
    with pytest.raises(CheckpointError, match=r"^path: spec\.json .*: guide: "):
        load(tmp_path, net())


def damaged(content: bytes, generator: random.Random) -> Iterator[bytes]:
    """Cut at places of every kind, with a bit flipped, with bytes of no use."""
    size = len(content)
    for end in {0, 1, 7, 8, 9, size // 2, size - 1, *(generator.randrange(size) for _ in range(20))}:
        yield content[:end]
    for _ in range(60):
        flipped = bytearray(content)
        flipped[generator.randrange(size)] ^= 1 << generator.randrange(8)
        yield bytes(flipped)
    yield bytes(size)
    yield content + b"\0"
    yield content[8:]
    yield (2**63).to_bytes(8, "little") + content[8:]


@pytest.mark.parametrize("pattern", ["spec.json", "tensors-*.safetensors"])
def test_damage_to_the_bytes_of_a_checkpoint_is_noticed(tmp_path: Path, pattern: str) -> None:
    torch.manual_seed(0)
    saved(tmp_path)
    before = outcome(tmp_path)
    assert isinstance(before, list)
    (file,) = tmp_path.glob(pattern)
    for content in damaged(file.read_bytes(), random.Random(3)):
        file.write_bytes(content)
        found = outcome(tmp_path)
        if isinstance(found, Exception):
            assert isinstance(found, CheckpointError), found
            assert str(found).startswith("path: "), found
        else:
            assert same(found, before)


@pytest.mark.parametrize("pattern", ["state.json", "state-*.safetensors"])
def test_damage_to_the_bytes_of_a_state_is_noticed(tmp_path: Path, pattern: str) -> None:
    tree = {"a": [1, 2.5, float("nan")], "b": {3: (torch.arange(40.0), "x")}, "c": None}
    save_state(tmp_path, tree)
    (file,) = tmp_path.glob(pattern)
    for content in damaged(file.read_bytes(), random.Random(4)):
        file.write_bytes(content)
        found: Any = None
        with contextlib.suppress(CheckpointError):
            found = load_state(tmp_path)
        assert found is None or repr(found) == repr(tree)


def test_entries_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    text = (tmp_path / "spec.json").read_text()
    (tmp_path / "spec.json").write_text(text.replace('"num_data": 64', '"num_data": 65, "num_data": 64'))
    with pytest.raises(CheckpointError, match=r"^path: .*the entry 'num_data' is there twice"):
        load(tmp_path, net())


def test_entries_in_another_order_are_refused(tmp_path: Path) -> None:
    """The order of sites is that of the flat vector."""
    saved(tmp_path)
    document = json.loads((tmp_path / "spec.json").read_text())
    document["model"]["priors"] = dict(reversed(document["model"]["priors"].items()))
    (tmp_path / "spec.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"'model\.priors' is not what was written"):
        load(tmp_path, net())


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("nothing")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))  # whose length is limited


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are a POSIX matter")
@pytest.mark.parametrize("make", [pipe, Path.mkdir, loop, nowhere, device, unix_socket])
@pytest.mark.parametrize("pattern", ["spec.json", "tensors-*.safetensors", "state.json", "state-*.safetensors"])
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, pattern: str, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, guide = saved(tmp_path)
    save_state(tmp_path, {"a": torch.zeros(3)})
    (file,) = tmp_path.glob(pattern)
    file.unlink()
    monkeypatch.chdir(tmp_path)
    make(file)
    is_state = file.name.startswith("state")
    with pytest.raises(CheckpointError, match=r"^path: .* is a .*; expected a file|leads nowhere|link to nothing"):
        load_state(tmp_path) if is_state else load(tmp_path, net())
    if file.suffix == ".json":
        with pytest.raises(CheckpointError, match=r"^path: .*expected a file|leads nowhere|link to nothing"):
            save_state(tmp_path, {}) if is_state else save(tmp_path, model, guide)
        assert os.path.lexists(file)


@pytest.mark.parametrize("path", ["", "  ", "a\0b"])
def test_paths_that_name_nothing_are_refused(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = SupervisedModel(net(), likelihoods.HeteroscedasticNormal(0.1), dist.Normal(0.0, 1.0), num_data=64)
    for call in (
        lambda: save(path, model, MAP(model)),
        lambda: load(path, net()),
        lambda: save_state(path, {}),
        lambda: load_state(path),
    ):
        with pytest.raises(ValueError, match=r"^path: expected the path of a directory"):
            call()
    with pytest.raises(TypeError, match=r"^path: expected the path of a directory, got 3"):
        load_state(3)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


class Versioned(nn.Linear):
    """Asks for the version of the format it is loaded from, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_modules_with_versions_are_filled(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), Versioned(2, 2))

    torch.manual_seed(0)
    rules = [("1.bias", None), ("*", dist.Normal(0.0, 1.0))]
    model = SupervisedModel(build(), likelihoods.HeteroscedasticNormal(0.1), rules, num_data=64)
    save(tmp_path, model, MeanField(model))
    loaded, _ = load(tmp_path, build())
    bias = "net.net.1.bias"
    assert torch.equal(loaded.state_dict()[bias], model.state_dict()[bias])


def test_settings_of_a_given_model_are_compared(tmp_path: Path) -> None:
    """A scale of a horseshoe and a floor are no tensors, so the state does not tell."""

    def build(scale: float, floor: float) -> SupervisedModel:
        likelihood = likelihoods.HeteroscedasticNormal(floor)
        return SupervisedModel(net(), likelihood, priors.horseshoe(scale), num_data=64)

    model = build(0.3, 0.1)
    save(tmp_path, model, MeanField(model))
    load(tmp_path, model=build(0.3, 0.1))
    with pytest.raises(ValueError, match=r"^model: .*the prior of '0.weight' has scale 0.5, expected 0.3"):
        load(tmp_path, model=build(0.5, 0.1))
    with pytest.raises(ValueError, match=r"^model: .*'likelihood' has floor 0.2, expected 0.1"):
        load(tmp_path, model=build(0.3, 0.2))
