"""The length of a run that is not stated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from pyrobnn.core.batches import num_batches
from pyrobnn.training import default_epochs, fit
from pyrobnn.training.length import default_patience
from tests.training.networks import data, loader, model_and_guide


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(zip(*data(), strict=True))


class Repeated:
    """A list of batches that says it is longer than it is worth training on in a test."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Any:
        return iter([data()])


@pytest.mark.parametrize(
    ("batches", "epochs"), [(1, 2000), (3, 667), (15, 134), (99, 21), (100, 20), (101, 20), (1_000_000, 20), (0, 20)]
)
def test_about_2000_steps_and_at_least_20_epochs(batches: int, epochs: int) -> None:
    assert default_epochs(Repeated(batches)) == epochs


@pytest.mark.parametrize("endless", [DataLoader(Stream(), batch_size=4), (batch for batch in [data()])])
def test_without_a_length_there_are_20_epochs(endless: Any) -> None:
    assert num_batches(endless) is None
    assert default_epochs(endless) == 20


def test_fit_takes_them_and_its_history_says_so() -> None:
    history = fit(*model_and_guide(), Repeated(80), progress=False)
    assert history.planned == history.epochs == 25
    assert history.stopped == "epochs"
    history = fit(*model_and_guide(), loader(), epochs=3, progress=False)
    assert history.planned == history.epochs == 3
    stop = [lambda history: history.epochs == 2]
    history = fit(*model_and_guide(), loader(), progress=False, callbacks=stop)
    assert history.planned == 667
    assert history.epochs == 2


def test_a_resumed_run_is_as_long_as_it_was_to_be(tmp_path: Any) -> None:
    def run(**options: Any) -> Any:
        return fit(
            *model_and_guide(), Repeated(90), progress=False, seed=0, checkpoint=tmp_path, resume=True, **options
        )

    assert run(epochs=2).planned == 2
    history = run()
    assert history.planned == history.epochs == 23


def test_what_is_used_up_after_one_pass_is_refused_as_before() -> None:
    with pytest.raises(TypeError, match="loader: a list_iterator is used up after one epoch"):
        fit(*model_and_guide(), iter([data()]), progress=False)


@pytest.mark.parametrize("epochs", [0, -1, 2.0, True, "20", torch.tensor(3)])
def test_what_is_no_number_of_epochs_is_refused(epochs: Any) -> None:
    with pytest.raises(ValueError, match="epochs: expected a positive int"):
        fit(*model_and_guide(), loader(), epochs=epochs, progress=False)


@pytest.mark.parametrize(("epochs", "patience"), [(1, 10), (20, 10), (134, 13), (2000, 200)])
def test_the_default_patience_is_a_tenth_and_at_least_10(epochs: int, patience: int) -> None:
    assert default_patience(epochs) == patience
