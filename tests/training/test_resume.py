"""Resuming: damaged and foreign states are refused and change nothing; one run at a time writes to a directory."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn
from pyrobnn import likelihoods
from pyrobnn.checkpoint import CheckpointError, DirectoryInUseError, load_state, save_state
from pyrobnn.core.documents import sealed
from pyrobnn.guides import MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training import fit
from tests.training.networks import data, loader, model_and_guide, same, tensors

quiet = functools.partial(fit, progress=False)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The checkpoint of one epoch, with a schedule and a best state."""
    quiet(*model_and_guide(), loader(), epochs=1, seed=1, checkpoint=tmp_path, **settings())
    return tmp_path


def settings() -> dict[str, Any]:
    return {"scheduler": functools.partial(StepLR, step_size=2), "validation": [data()]}


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Changes the recorded state and its digests, as another version of the library might."""
    document = json.loads((path / "state.json").read_text())
    change(document["state"])
    (path / "state.json").write_text(json.dumps(sealed(document)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("best"), r"state\.best: expected an entry, got nothing"),
        (lambda s: s.update(best_value="x"), r"state\.best_value: expected a number, got 'x'"),
        (lambda s: s.update(epochs_since_best=-1), r"state\.epochs_since_best: expected an int of at least 0"),
        (lambda s: s["tensors"].pop("guide"), r"state\.tensors\.guide: expected an entry"),
        (lambda s: s["tensors"]["model"].update(x=3), r"state\.tensors\.model\.x: expected a tensor"),
        (lambda s: s["history"].update(elbo=None), r"state\.history\.elbo: expected a list"),
        (lambda s: s["history"].update(elbo=["x"]), r"state\.history\.elbo\[0\]: expected a number"),
        (lambda s: s["history"].update(more=[]), r"state\.history\.more: expected no such entry"),
        (lambda s: s.update(players={}), r"state\.players: expected a list"),
        (lambda s: s.update(optimizer=[]), r"state\.optimizer: expected a dict"),
        (lambda s: s["random"].pop("generators"), r"state\.random\.generators: expected an entry"),
        (lambda s: s["random"].pop("torch"), "cannot be restored"),
        (lambda s: s["random"].update(python=[1, 2]), "cannot be restored"),
        (lambda s: s["random"].update(numpy=3), "cannot be restored"),
        (lambda s: s["optimizer"].pop("state"), "cannot be restored"),
        (lambda s: s["optimizer"].update(param_groups=3), "another optimizer"),
        (lambda s: s["kinds"].update(optimizer="SGD"), "another optimizer: it was SGD, but now it is Adam"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(
    earlier: Path, change: Callable[[Any], object], message: str
) -> None:
    edit(earlier, change)
    built, guide = model_and_guide()
    before, random = tensors(built, guide), torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"^checkpoint: .*{message}"):
        quiet(built, guide, loader(), epochs=2, checkpoint=earlier, resume=True, **settings())
    assert same(tensors(built, guide), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_what_another_optimizer_or_schedule_left_is_refused(earlier: Path) -> None:
    """SGD would take Adam's state, and any schedule another's, without a word."""
    for changed, message in (
        ({"optimizer": torch.optim.RMSprop}, "another optimizer: it was Adam, but now it is RMSprop"),
        ({"scheduler": functools.partial(ExponentialLR, gamma=0.9)}, "another scheduler: it was StepLR"),
    ):
        built, guide = model_and_guide()
        with pytest.raises(ValueError, match=rf"^checkpoint: it is that of {message}"):
            quiet(built, guide, loader(), epochs=2, checkpoint=earlier, resume=True, **settings() | changed)


def test_what_another_precision_left_is_refused(earlier: Path) -> None:
    built, _ = model_and_guide()
    built = built.double()
    x, y = data()
    options = settings() | {"validation": [(x.double(), y)]}
    with pytest.raises(ValueError, match=r"^checkpoint: it is that of another model: the tensor .* was .*float32, but"):
        quiet(built, MeanField(built), [(x.double(), y)], epochs=2, checkpoint=earlier, resume=True, **options)


def test_what_is_no_state_of_a_training_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, {"kept": 3, "shards": [], "run": {}})
    with pytest.raises(CheckpointError, match=r"^checkpoint: .* holds no state of a training run: state\.tensors"):
        quiet(*model_and_guide(), loader(), checkpoint=tmp_path, resume=True)
    for path in ("", " "):
        with pytest.raises(ValueError, match=r"^checkpoint: expected the path of a directory"):
            quiet(*model_and_guide(), loader(), checkpoint=path)


def test_a_second_run_in_a_directory_is_refused(tmp_path: Path) -> None:
    """A second fit, and a save over the state; a model may be saved beside it."""
    refused = []

    def second(history: Any) -> None:
        for attempt in (
            lambda: quiet(*model_and_guide(), loader(), checkpoint=tmp_path, resume=True),
            lambda: save_state(tmp_path, {}),
        ):
            with pytest.raises(DirectoryInUseError, match=rf" by fit in process {os.getpid()} "):
                attempt()
            refused.append(history.epochs)
        pyrobnn.save(tmp_path, *model_and_guide())

    quiet(*model_and_guide(), loader(), epochs=2, checkpoint=tmp_path, callbacks=[second])
    assert refused == [1, 1, 2, 2]
    assert not list(tmp_path.glob(".*"))
    assert len(load_state(tmp_path)["history"]["elbo"]) == 2


def test_an_error_frees_the_directory(tmp_path: Path) -> None:
    def fail(history: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        quiet(*model_and_guide(), loader(), checkpoint=tmp_path / "run", callbacks=[fail])
    assert not (tmp_path / "run").exists()
    assert quiet(*model_and_guide(), loader(), epochs=1, checkpoint=tmp_path / "run").epochs == 1


def test_a_finished_run_needs_no_writable_directory(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, resumed = model_and_guide(), model_and_guide()
    quiet(*whole, loader(), epochs=1, seed=1, **settings())

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "replace", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    quiet(*resumed, loader(), epochs=1, checkpoint=earlier, resume=True, **settings())
    assert same(tensors(*resumed), tensors(*whole))
    with pytest.raises(OSError, match=r"^checkpoint: could not write to .*Read-only"):
        quiet(*resumed, loader(), epochs=2, checkpoint=earlier, resume=True, **settings())


@pytest.mark.skipif(os.name != "posix", reason="limits of file size are a POSIX matter")
def test_a_full_disk_keeps_the_last_epoch(tmp_path: Path) -> None:
    """From the second epoch on, files may not grow beyond 600 bytes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(history: Any) -> None:
        if history.epochs == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))

    try:
        with pytest.raises(OSError, match=r"^checkpoint: could not write to .* what was there is untouched"):
            quiet(*model_and_guide(), loader(), epochs=3, checkpoint=tmp_path, callbacks=[full])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(load_state(tmp_path)["history"]["elbo"]) == 1
    resumed = quiet(*model_and_guide(), loader(), epochs=3, checkpoint=tmp_path, resume=True)
    assert (len(load_state(tmp_path)["history"]["elbo"]), resumed.epochs) == (3, 3)


class Versioned(nn.Linear):
    """Asks for the version of the format it is loaded from, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_modules_with_versions_go_back_to_the_best_epoch_and_resume(tmp_path: Path) -> None:
    def build() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            net = nn.Sequential(nn.Linear(3, 4), Versioned(4, 3))
        normal = pyrobnn.priors.he()
        model = pyrobnn.SupervisedModel(net, pyrobnn.likelihoods.Categorical(), normal, num_data=20)
        return model, MeanField(model)

    options: dict[str, Any] = {"validation": [data()], "patience": 9}
    whole, resumed = build(), build()
    quiet(*whole, loader(), epochs=2, seed=3, **options)
    quiet(*build(), loader(), epochs=1, seed=3, checkpoint=tmp_path, **options)
    quiet(*resumed, loader(), epochs=2, checkpoint=tmp_path, resume=True, **options)
    assert same(tensors(*resumed), tensors(*whole))


def image_model(num_data: int = 12) -> tuple[nn.Module, MeanField]:
    """A network that takes images of every size."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    built = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=num_data)
    return built, MeanField(built)


def images(rows: int, side: int, dtype: torch.dtype = torch.int64) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(rows, 1, side, side, generator=generator), torch.randint(3, (rows,), generator=generator)
    return DataLoader(TensorDataset(x, y.to(dtype)), batch_size=5)


def test_other_data_are_not_resumed(tmp_path: Path) -> None:
    """Of another number, of other sizes or of another dtype; another batch size is no other data."""
    quiet(*image_model(), images(12, 6), epochs=1, checkpoint=tmp_path)
    for num_data, batches, message in (
        (15, images(15, 6), r"^num_data: the model had 12 data in the run to resume, but now has 15"),
        (12, images(12, 7), r"^loader: an input of a batch had the shape \[B, 1, 6, 6\], but now it is \[B, 1, 7, 7\]"),
        (12, images(12, 6, torch.int32), r"^loader: the targets of a batch had the kind torch.int64, but now .*int32"),
    ):
        built, guide = image_model(num_data)
        with pytest.raises(ValueError, match=message):
            quiet(built, guide, batches, epochs=2, checkpoint=tmp_path, resume=True)
    again = DataLoader(images(12, 6).dataset, batch_size=4)
    assert quiet(*image_model(), again, epochs=2, checkpoint=tmp_path, resume=True).epochs == 2


def test_batches_of_several_sizes_are_resumed(tmp_path: Path) -> None:
    """Sizes that differ between batches of the first epoch may differ later, too."""
    batches = [*images(6, 5), *images(6, 7)]
    quiet(*image_model(), batches, epochs=1, checkpoint=tmp_path)
    assert quiet(*image_model(), batches[::-1], epochs=2, checkpoint=tmp_path, resume=True).epochs == 2
