"""What is known of the rows that a posterior was trained on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

import pyrobnn as pb
from pyrobnn.calibration import HistogramBinning, TemperatureScaling
from pyrobnn.conformal import ConformalRegressor
from pyrobnn.core.training_rows import remember, share_rows, were_trained_on
from pyrobnn.guides import MAP, Laplace

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
DATA = TensorDataset(X, Y)


class Own(Dataset[tuple[Tensor, Tensor]]):
    """A data set of one's own."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


OWN = Own()
SEEN: list[tuple[str, Any, Any]] = [
    ("the loader", DataLoader(DATA, 8), DataLoader(DATA, 16)),
    ("the tensor", DataLoader(DATA, 8), X),
    ("a slice of it", DataLoader(DATA, 8), X[30:]),
    ("another data set of the tensor", DataLoader(DATA, 8), DataLoader(TensorDataset(X, Y), 8)),
    ("the whole of a subset", DataLoader(Subset(DATA, range(20)), 8), DataLoader(DATA, 8)),
    ("overlapping subsets", DataLoader(Subset(OWN, range(20)), 8), DataLoader(Subset(OWN, range(19, 30)), 8)),
    ("a subset of a subset", DataLoader(Subset(OWN, [5, 6]), 8), DataLoader(Subset(Subset(OWN, range(5, 9)), [1]), 8)),
    ("a sampler's rows", DataLoader(OWN, 8, sampler=SubsetRandomSampler([1, 2])), DataLoader(Subset(OWN, [2]), 8)),
    ("a part of a concatenation", DataLoader(ConcatDataset([DATA, OWN]), 8), DataLoader(Subset(OWN, [3]), 8)),
    ("a batch of a list", [(X, Y)], X),
    ("inputs in a dict", [({"x": X}, Y)], {"x": X}),
]
NEW: list[tuple[str, Any, Any]] = [
    ("another data set", DataLoader(DATA, 8), DataLoader(OWN, 8)),
    ("a copy", DataLoader(DATA, 8), X.clone()),
    ("another part of the tensor", DataLoader(TensorDataset(X[:30], Y[:30]), 8), X[30:]),
    ("another data set of that part", [(X[:30], Y[:30])], DataLoader(TensorDataset(X[30:], Y[30:]), 8)),
    ("a disjoint subset", DataLoader(Subset(OWN, range(20)), 8), DataLoader(Subset(OWN, range(20, 40)), 8)),
    ("a disjoint subset of tensors", DataLoader(Subset(DATA, range(20)), 8), DataLoader(Subset(DATA, [20]), 8)),
    ("the rest of a sampler", DataLoader(OWN, 8, sampler=SubsetRandomSampler([1, 2])), DataLoader(Subset(OWN, [3]), 8)),
    ("nothing", DataLoader(Subset(OWN, []), 8), DataLoader(OWN, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "trained", "asked"), SEEN, ids=[name for name, _, _ in SEEN])
def test_rows_of_the_training_are_recognized(name: str, trained: Any, asked: Any) -> None:
    posterior = nn.Linear(1, 1)
    assert not were_trained_on(posterior, asked)
    remember(posterior, trained)
    assert were_trained_on(posterior, asked)
    assert share_rows(trained, asked) and share_rows(asked, trained)


@pytest.mark.parametrize(("name", "trained", "asked"), NEW, ids=[name for name, _, _ in NEW])
def test_other_rows_are_not(name: str, trained: Any, asked: Any) -> None:
    posterior = nn.Linear(1, 1)
    remember(posterior, trained)
    assert not were_trained_on(posterior, asked)
    assert not share_rows(trained, asked)


def test_data_are_not_kept_alive() -> None:
    posterior, data = nn.Linear(1, 1), Own()
    remember(posterior, DataLoader(data))
    alive = weakref.ref(data)
    del data
    gc.collect()
    assert alive() is None
    assert not were_trained_on(posterior, DataLoader(OWN))


def test_loaders_without_a_data_set_are_unknown() -> None:
    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        yield X, Y

    posterior = nn.Linear(1, 1)
    remember(posterior, rows())
    assert not were_trained_on(posterior, X)
    assert not were_trained_on({"w": torch.zeros(3)}, X)


FIRST, LAST = TensorDataset(X[:30], Y[:30]), TensorDataset(X[30:], Y[30:])


def fitted() -> tuple[pb.SupervisedModel, MAP]:
    model = pb.SupervisedModel(nn.Linear(3, 3), pb.likelihoods.Categorical(), num_data=30)
    guide = MAP(model)
    pb.fit(model, guide, DataLoader(FIRST, 10), epochs=1, progress=False)
    return model, guide


def test_calibration_refuses_what_the_posterior_was_trained_on() -> None:
    model, guide = fitted()
    train = pb.predict(model, guide, X[:30])
    assert train.is_of_training_data
    with pytest.raises(ValueError, match="rows that the posterior was trained on"):
        TemperatureScaling().fit(train, Y[:30])
    with pytest.raises(ValueError, match="rows that the posterior was trained on"):  # also in part
        TemperatureScaling().fit(train.rows(slice(0, 9)), Y[:9])
    held_out = pb.predict(model, guide, X[30:])
    assert not held_out.is_of_training_data
    HistogramBinning(2).fit(held_out, Y[30:])
    joined = pb.Prediction.join([held_out, train])
    assert joined.is_of_training_data
    train.is_of_training_data = False
    HistogramBinning(2).fit(train, Y[:30])


def test_conformal_sets_refuse_it_too() -> None:
    model = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(0.5), num_data=40)
    guide, loader = MAP(model), [(X, X[:, :1])]
    pb.fit(model, guide, loader, epochs=1, progress=False)
    with pytest.raises(ValueError, match="rows that the posterior was trained on"):
        ConformalRegressor().conformalize(pb.predict(model, guide, loader))


def test_a_laplace_approximation_remembers_its_data_and_refuses_them_for_tuning() -> None:
    model, guide = fitted()
    laplace = Laplace(model, init=guide)
    assert not were_trained_on(laplace, X)
    train, held_out = DataLoader(FIRST, 10), DataLoader(LAST, 10)
    with pytest.raises(ValueError, match="held_out: it shares rows with loader"):
        laplace.fit(model, train, prior_precision="held_out", held_out=[(X[20:], Y[20:])])
    laplace.fit(model, train, prior_precision="held_out", held_out=held_out)
    assert were_trained_on(laplace, X[:30])
    assert not were_trained_on(laplace, X[30:])
