"""Checkpoints of a training run: three epochs and three more are six, to the last bit."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro.optim
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pyrobnn.core.schedules import Linear
from pyrobnn.guides import MeanField
from pyrobnn.objectives import ELBO
from pyrobnn.training import History, fit
from tests.conformance.guide_models import UserModel
from tests.training.networks import data, loader, model, model_and_guide, same, tensors

quiet = functools.partial(fit, progress=False)


def own_generator() -> DataLoader:
    """Shuffled by a generator of the loader's own."""
    return loader(shuffle=True, generator=torch.Generator().manual_seed(7))


def sampler_with_generator() -> DataLoader:
    """Shuffled by a generator that only the sampler has."""
    dataset = TensorDataset(*data())
    return loader(sampler=RandomSampler(dataset, generator=torch.Generator().manual_seed(7)))


def noisy() -> Any:
    """Batches with augmentation from NumPy's and Python's generators."""

    class Noisy:
        def __iter__(self) -> Iterator[Any]:
            for x, y in loader(shuffle=True):
                yield x + 0.1 * float(np.random.randn()) + 0.1 * random.gauss(0, 1), y  # noqa: NPY002

    return Noisy()


def everything() -> dict[str, Any]:
    """Settings with a state of their own."""
    return {
        "elbo": ELBO(2, temperature=Linear(0.0, 1.0, 11, hold=True)),
        "scheduler": functools.partial(OneCycleLR, max_lr=0.05, total_steps=10),
        "scheduler_per": "epoch",
        "validation": [data()],
        "patience": 50,
        "clip_norm": 0.5,
    }


def plateau() -> dict[str, Any]:
    """A schedule that depends on what was reached."""
    return {"scheduler": functools.partial(ReduceLROnPlateau, patience=0, factor=0.5)}


def state() -> list[Any]:
    """The random states of torch, NumPy and Python."""
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002


def comparable(history: History) -> dict[str, Any]:
    """All of the history but the time it took."""
    return {name: value for name, value in history.to_dict().items() if name != "seconds"}


LOADERS = [loader, functools.partial(loader, shuffle=True), own_generator, sampler_with_generator, noisy]


@pytest.mark.parametrize("make_loader", LOADERS, ids=["ordered", "shuffled", "generator", "sampler", "augmented"])
@pytest.mark.parametrize("settings", [dict, everything, plateau], ids=["plain", "everything", "plateau"])
def test_three_epochs_and_three_more_are_six(
    make_loader: Callable[[], Any], settings: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    whole = model_and_guide(batch_norm=True)
    pyro.set_rng_seed(3)
    history = quiet(*whole, make_loader(), epochs=6, **settings())
    expected = state()
    half = model_and_guide(batch_norm=True)
    pyro.set_rng_seed(3)
    quiet(*half, make_loader(), epochs=3, checkpoint=tmp_path, **settings())
    resumed = model_and_guide(batch_norm=True)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    again = quiet(*resumed, make_loader(), epochs=6, checkpoint=tmp_path, resume=True, **settings())
    assert same(tensors(*resumed), tensors(*whole))
    assert comparable(again) == comparable(history)
    assert state() == expected


@pytest.mark.parametrize("optimizer", [functools.partial(torch.optim.SGD, momentum=0.9), torch.optim.RMSprop])
def test_other_optimizers_resume_too(optimizer: Any, tmp_path: Path) -> None:
    whole, resumed = model_and_guide(), model_and_guide()
    quiet(*whole, loader(shuffle=True), epochs=4, seed=3, optimizer=optimizer)
    quiet(*model_and_guide(), loader(shuffle=True), epochs=2, seed=3, optimizer=optimizer, checkpoint=tmp_path)
    quiet(*resumed, loader(shuffle=True), epochs=4, optimizer=optimizer, checkpoint=tmp_path, resume=True)
    assert same(tensors(*resumed), tensors(*whole))


def test_a_model_without_num_data_resumes_too(tmp_path: Path) -> None:
    batches = [(torch.randn(24, 3), torch.randn(24))]
    models = [UserModel() for _ in range(1)]
    models += [copy.deepcopy(models[0]), copy.deepcopy(models[0])]
    whole, first, resumed = ((built, MeanField(built, example=batches[0])) for built in models)
    quiet(*whole, batches, epochs=4, seed=3)
    quiet(*first, batches, epochs=2, seed=3, checkpoint=tmp_path)
    quiet(*resumed, batches, epochs=4, checkpoint=tmp_path, resume=True)
    assert same(tensors(*resumed), tensors(*whole))


def test_an_interrupted_epoch_is_trained_again(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the third epoch; the checkpoint is that of the second."""

    class Interrupted:
        def __init__(self) -> None:
            self.passes = 0
            self.batches = loader(shuffle=True)

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            for index, batch in enumerate(self.batches):
                if self.passes == 3 and index == 1:
                    raise KeyboardInterrupt
                yield batch

    whole, resumed = model_and_guide(), model_and_guide()
    history = quiet(*whole, loader(shuffle=True), epochs=4, seed=3)
    stopped = model_and_guide()
    assert quiet(*stopped, Interrupted(), epochs=4, seed=3, checkpoint=tmp_path).stopped == "interrupted"
    for pair in (resumed, stopped):  # in a new process, or with the very objects that were interrupted
        again = quiet(*pair, loader(shuffle=True), epochs=4, checkpoint=tmp_path, resume=True)
        assert same(tensors(*pair), tensors(*whole))
        assert comparable(again) == comparable(history)


def test_a_run_that_a_callback_stopped_goes_on(tmp_path: Path) -> None:
    first = quiet(
        *model_and_guide(), loader(), epochs=5, seed=1, checkpoint=tmp_path, callbacks=[lambda h: h.epochs == 2]
    )
    assert first.stopped == "callback"
    again = quiet(*model_and_guide(), loader(), epochs=5, checkpoint=tmp_path, resume=True)
    assert (again.epochs, again.stopped) == (5, "epochs")


def test_a_run_out_of_patience_stays_so(tmp_path: Path) -> None:
    x, y = data()
    settings: dict[str, Any] = {"epochs": 50, "lr": 0.1, "validation": [(x, (y + 1) % 3)], "patience": 1}
    done, resumed = model_and_guide(), model_and_guide()
    history = quiet(*done, loader(), seed=1, checkpoint=tmp_path, **settings)
    again = quiet(*resumed, loader(), checkpoint=tmp_path, resume=True, **settings)
    assert history.stopped == again.stopped == "patience"
    assert again.epochs == history.epochs < 50
    assert same(tensors(*resumed), tensors(*done))


def test_resume_starts_afresh_where_there_is_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "new"):
        history = quiet(*model_and_guide(), loader(), epochs=1, checkpoint=path, resume=True)
        assert history.epochs == 1
        assert (path / "state.json").exists()


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    built, guide = model_and_guide()
    history = quiet(built, guide, loader(), epochs=2, checkpoint=tmp_path)
    before = tensors(built, guide)
    again = quiet(built, guide, loader(), epochs=2, checkpoint=tmp_path, resume=True)
    assert comparable(again) == comparable(history)
    assert same(tensors(built, guide), before)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The checkpoint of one epoch."""
    quiet(*model_and_guide(), loader(), epochs=1, checkpoint=tmp_path)
    return tmp_path


def test_another_model_is_refused_and_left_alone(earlier: Path) -> None:
    built, guide = model_and_guide(batch_norm=True)
    before = tensors(built, guide)
    with pytest.raises(ValueError, match=r"^checkpoint: .*another model"):
        quiet(built, guide, loader(), epochs=2, checkpoint=earlier, resume=True)
    assert same(tensors(built, guide), before)


def test_another_optimizer_is_refused_and_the_model_left_alone(earlier: Path) -> None:
    built, guide = model_and_guide()
    before = tensors(built, guide)
    groups = [{"params": [parameter]} for parameter in guide.parameters()]  # where there was one
    with pytest.raises(ValueError, match=r"^checkpoint: .*optimizer"):
        quiet(built, guide, loader(), epochs=2, checkpoint=earlier, resume=True, optimizer=torch.optim.Adam(groups))
    assert same(tensors(built, guide), before)


def test_another_schedule_or_loader_is_refused(earlier: Path) -> None:
    with pytest.raises(ValueError, match=r"^scheduler: .*without one"):
        quiet(*model_and_guide(), loader(), epochs=2, checkpoint=earlier, resume=True, **plateau())
    with pytest.raises(ValueError, match=r"^loader: .*random generators"):
        quiet(*model_and_guide(), own_generator(), epochs=2, checkpoint=earlier, resume=True)


def test_a_pyro_optimizer_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^checkpoint: .*pyro\.optim"):
        quiet(*model_and_guide(), loader(), optimizer=pyro.optim.Adam({"lr": 0.1}), checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_resume_needs_a_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"^resume: .*checkpoint="):
        quiet(model(), MeanField(model()), loader(), resume=True)
