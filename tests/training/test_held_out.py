"""Early stopping on rows that are held out: which rows, what the model is told, and what is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyrobnn import likelihoods
from pyrobnn.guides import MAP
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training import fit
from pyrobnn.training.held_out import held_out
from tests.conformance.conjugate import ConjugateRegression

quiet = functools.partial(fit, progress=False)
N = 45
ROWS = TensorDataset(torch.arange(float(N)).unsqueeze(-1), torch.arange(float(N)).unsqueeze(-1))


def model(num_data: int = N) -> SupervisedModel:
    return SupervisedModel(nn.Linear(1, 1), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=num_data)


def rows(loader: DataLoader[Any]) -> list[int]:
    return [int(value) for x, _ in loader for value in x]


class Seen(nn.Linear):
    """Remembers the rows it was trained on and evaluated on."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.rows: dict[bool, set[int]] = {True: set(), False: set()}

    def forward(self, x: Tensor) -> Tensor:
        self.rows[self.training].update(int(value) for value in x.flatten())
        return super().forward(x / N)


def test_a_tenth_is_held_out_and_num_data_is_that_of_the_others() -> None:
    built = model()
    with held_out(built, DataLoader(ROWS, batch_size=8, shuffle=True)) as (training, validation):
        assert built.num_data == 41
        first, second, others = rows(training), rows(training), rows(validation)
    assert built.num_data == N
    assert len(first) == 41
    assert first != second  # shuffled anew
    assert sorted(first) == sorted(second)
    assert len(others) == 4
    assert others == sorted(others)
    assert sorted(first + others) == list(range(N))


def test_the_same_rows_are_held_out_again() -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with held_out(model(), DataLoader(ROWS, batch_size=7)) as (_, validation):
            found.append(rows(validation))
    assert found[0] == found[1]


def test_an_error_gives_num_data_back() -> None:
    built = model()
    with pytest.raises(RuntimeError, match="stop"), held_out(built, DataLoader(ROWS, batch_size=7)):
        raise RuntimeError("stop")
    assert built.num_data == N


def test_batches_are_made_as_the_loader_makes_them() -> None:
    def collate(pairs: list[Any]) -> tuple[Tensor, Tensor]:
        x, y = (torch.stack(part) for part in zip(*pairs, strict=True))
        return x + 0.5, y

    loader = DataLoader(ROWS, batch_size=8, shuffle=True, drop_last=True, collate_fn=collate)
    with held_out(model(), loader) as (training, validation):
        assert [len(x) for x, _ in training] == [8] * 5
        assert [len(x) for x, _ in validation] == [4]
        assert all(bool((x % 1 == 0.5).all()) for x, _ in [*training, *validation])


def test_a_generator_stays_the_loaders() -> None:
    for sampler in (RandomSampler(ROWS, generator=torch.Generator().manual_seed(1)), None):
        generator = torch.Generator().manual_seed(2)
        options = {"sampler": sampler} if sampler else {"shuffle": True}
        loader = DataLoader(ROWS, batch_size=8, generator=generator, **options)  # type: ignore[arg-type]
        with held_out(model(), loader) as (training, _):
            assert training.generator is generator
            assert training.sampler.generator is (sampler.generator if sampler else generator)  # type: ignore[attr-defined]


def test_a_subset_is_split_within_itself() -> None:
    subset = list(range(5, 25))
    with held_out(model(20), DataLoader(ROWS, batch_size=6, sampler=SubsetRandomSampler(subset))) as (training, others):
        assert sorted(rows(training) + rows(others)) == subset
        assert len(rows(others)) == 2


def test_fit_trains_on_the_others_only() -> None:
    net = Seen()
    built = SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=N)
    guide = MAP(built)
    seen = built.net.network
    history = quiet(built, guide, DataLoader(ROWS, batch_size=8, shuffle=True), epochs=3, early_stopping=True)
    assert seen.rows[True].isdisjoint(held := seen.rows[False] - seen.rows[True])
    assert len(held) == 4
    assert len(seen.rows[True]) == 41
    assert history.steps == 3 * 6
    assert len(history.validation) == 3
    assert built.num_data == N


def test_the_posterior_is_that_of_the_rows_trained_on() -> None:
    """Training goes as on these rows alone, the prior weighed against their number."""
    problem = ConjugateRegression()
    built = problem.model()
    loader = DataLoader(TensorDataset(problem.x, problem.y), batch_size=problem.num_data)
    with held_out(built, loader) as (training, _):
        (rows_of,) = training
    start = {"net.weight": torch.zeros(1, 3), "net.bias": torch.zeros(1)}
    guide = MAP(built, start).double()
    history = quiet(built, guide, loader, epochs=5, lr=0.05, early_stopping=True)
    built.num_data = len(rows_of[0])
    expected = quiet(built, MAP(built, start).double(), [rows_of], epochs=5, lr=0.05)
    assert history.elbo == pytest.approx(expected.elbo, rel=1e-12)
    assert history.kl == pytest.approx(expected.kl, rel=1e-12)


def test_training_goes_back_to_the_best_epoch() -> None:
    """Twelve epochs that make it worse end it, with the patience that is the default."""
    built = model()
    guide = MAP(built)
    x = torch.linspace(-1, 1, N).unsqueeze(-1)
    loader = DataLoader(TensorDataset(x, 2 * x), batch_size=N)
    values: list[Tensor] = []

    def watch(history: Any) -> None:
        values.append(guide.flat_loc.detach().clone())
        if history.epochs == 5:  # from now on the learning rate throws the weights about
            optimizer.param_groups[0]["lr"] = -0.5

    optimizer = torch.optim.SGD(guide.parameters(), lr=0.1)
    options: dict[str, Any] = {"optimizer": optimizer, "callbacks": [watch]}
    history = quiet(built, guide, loader, epochs=120, early_stopping=True, **options)
    best = max(range(len(history.validation)), key=history.validation.__getitem__)
    assert history.stopped == "patience"
    assert history.epochs == best + 1 + 12
    assert torch.equal(guide.flat_loc, values[best])


def test_given_validation_rows_are_used_and_nothing_is_held_out() -> None:
    built = model()
    x, y = ROWS.tensors
    history = quiet(built, MAP(built), [(x / N, y / N)], epochs=2, early_stopping=True, validation=[(x[:3], y[:3])])
    assert len(history.validation) == 2
    assert history.steps == 2


def test_a_run_can_be_resumed(tmp_path: Path) -> None:
    start = nn.Linear(1, 1)

    def run(directory: Path, epochs: int) -> tuple[Tensor, list[float]]:
        built = SupervisedModel(start, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=N)
        guide = MAP(built)
        loader = DataLoader(ROWS, batch_size=8, shuffle=True)
        settings: dict[str, Any] = {"seed": 0, "early_stopping": True, "checkpoint": directory, "resume": True}
        history = quiet(built, guide, loader, epochs=epochs, **settings)
        return guide.flat_loc.detach(), history.validation

    whole, values = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 3)
    again, same = run(tmp_path / "parts", 6)
    assert torch.equal(whole, again)
    assert values == same


# ------------------------------------------------------------------------------------------------------ refusals


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(ROWS)


class Graphs(DataLoader):
    """A loader of a kind of its own."""


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        ([ROWS.tensors], "not of a list; split the data yourself and pass validation="),
        (DataLoader(Stream(), batch_size=9), "of a kind of its own"),
        (Graphs(ROWS, batch_size=9), "of a kind of its own"),
        (DataLoader(ROWS, batch_size=None), "batches are not made row by row"),
        (DataLoader(ROWS, batch_sampler=[list(range(N))]), "batches are not made row by row"),
        (DataLoader(ROWS, sampler=RandomSampler(ROWS, replacement=True)), "not with a RandomSampler"),
        (DataLoader(ROWS, sampler=WeightedRandomSampler([1.0] * N, N)), "not with a WeightedRandomSampler"),
    ],
)
def test_loaders_that_cannot_be_split_are_refused(loader: Any, reason: str) -> None:
    built = model()
    with pytest.raises(TypeError, match=f"^early_stopping: .*{reason}"):
        quiet(built, MAP(built), loader, epochs=1, early_stopping=True)
    assert built.num_data == N


def test_too_few_rows_and_unknown_numbers_are_refused() -> None:
    few = TensorDataset(*(tensor[:9] for tensor in ROWS.tensors))
    built = model(9)
    with pytest.raises(ValueError, match=r"^early_stopping: a tenth of 9 rows is less than one"):
        quiet(built, MAP(built), DataLoader(few), epochs=1, early_stopping=True)
    built = model(90)
    reader: Any = lambda raw: (torch.cat([raw[0]] * 2), torch.cat([raw[1]] * 2))  # noqa: E731
    with pytest.raises(ValueError, match=r"^early_stopping: the data set has 45 items but the model num_data=90"):
        quiet(built, MAP(built), DataLoader(ROWS), batch=reader, epochs=1, early_stopping=True)
    with pytest.raises(TypeError, match=r"^early_stopping: Linear does not declare num_data"):
        held_out(nn.Linear(1, 1), DataLoader(ROWS)).__enter__()


class Fixed(nn.Linear):
    """Its number of data cannot be changed."""

    @property
    def num_data(self) -> int:
        return N


def test_a_num_data_that_cannot_be_set_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^early_stopping: num_data of Fixed cannot be set"):
        held_out(Fixed(1, 1), DataLoader(ROWS)).__enter__()


@pytest.mark.parametrize("value", [5, None, "yes", 0.1])
def test_what_is_no_bool_is_refused(value: Any) -> None:
    built = model()
    with pytest.raises(TypeError, match=r"^early_stopping: expected True or False, got .*patience="):
        quiet(built, MAP(built), DataLoader(ROWS), epochs=1, early_stopping=value)
