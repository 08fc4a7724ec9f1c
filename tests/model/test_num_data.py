"""The number of data: one N for training, curvature and sampling, whatever the loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import pyrobnn as pb
from pyrobnn import likelihoods
from pyrobnn.guides import MAP, Laplace
from pyrobnn.model.num_data import check_counted_rows, check_stated_rows, stated_rows
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling import HMC, SGLD

X = torch.randn(20, 1, generator=torch.Generator().manual_seed(8)).double()
Y = X + torch.randn(20, 1, generator=torch.Generator().manual_seed(9)).double()
DATA: TensorDataset = TensorDataset(X, Y)


def model(num_data: int) -> SupervisedModel:
    """``y ~ N(wx, 1)`` with ``w ~ N(0, 1)``: the posterior's precision is 1 plus the sum of squares of x."""
    net = nn.Linear(1, 1, bias=False).double()
    return SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=num_data)


class Stream(IterableDataset):
    """Rows without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


class Unbatched:
    """Items that are batches."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index > 1:
            raise IndexError
        return X[10 * index : 10 * index + 10], Y[10 * index : 10 * index + 10]


LOADERS: dict[str, tuple[Any, int]] = {
    "all": (DataLoader(DATA, 7), 20),
    "subset": (DataLoader(DATA, 5, sampler=SubsetRandomSampler(range(12))), 12),
    "list": ([(X[:9], Y[:9]), (X[9:], Y[9:])], 20),
    "stream": (DataLoader(Stream(), 6), 20),
    "unbatched": (DataLoader(Unbatched(), batch_size=None), 20),  # type: ignore[arg-type]
}
PARTIAL: dict[str, tuple[Any, int]] = {
    "replacement": (RandomSampler(DATA, replacement=True), 20),
    "more": (RandomSampler(DATA, replacement=True, num_samples=40), 20),
    "part": (RandomSampler(DATA, num_samples=12), 20),
    "process": (DistributedSampler(DATA, num_replicas=2, rank=0), 20),
    "weighted": (WeightedRandomSampler([1.0] * 20, 20), 20),
}


@pytest.mark.parametrize("name", list(LOADERS))
def test_training_curvature_and_sampling_take_the_same_number(name: str) -> None:
    """It is the number of rows of a pass, and curvature at that N is exact."""
    loader, right = LOADERS[name]
    built = model(right)
    guide = Laplace(built, structure="full")
    pb.fit(built, guide, loader, epochs=1, progress=False)
    guide.fit(built, loader)
    expected = 1.0 + X[:right].square().sum()
    torch.testing.assert_close(guide.marginal("net.weight").variance.squeeze(), 1.0 / expected)
    kernel = SGLD(step_size=1e-4)
    assert pb.sample(built, loader, kernel=kernel, num_samples=6, progress=False).sample(1)["net.weight"].isfinite()
    for wrong in (10, 15, 32):
        other = model(wrong)
        for act in (
            lambda other=other: pb.fit(other, MAP(other), loader, epochs=1, progress=False),
            lambda other=other: Laplace(other, structure="full").fit(other, loader),
            lambda other=other: pb.sample(other, loader, kernel=kernel, num_samples=6, progress=False),
            lambda other=other: pb.sample(other, loader, kernel=HMC(), num_samples=1, progress=False),
        ):
            with pytest.raises(ValueError, match=rf"\b{wrong}\b.*\b{right} rows|\b{right} rows.*\b{wrong}\b"):
                act()


@pytest.mark.parametrize("name", list(PARTIAL))
def test_what_needs_each_row_once_refuses_samplers_that_repeat_or_leave_out(name: str) -> None:
    """Training averages over such passes; a sum over one of them would be another data set's."""
    sampler, right = PARTIAL[name]
    loader: DataLoader = DataLoader(DATA, 6, sampler=sampler)
    built = model(right)
    pb.fit(built, MAP(built), loader, epochs=1, progress=False)
    match = rf"its {type(sampler).__name__} repeats rows or leaves some out, but .* needs each row once"
    with pytest.raises(ValueError, match=rf"^loader: {match}"):
        Laplace(built, structure="full").fit(built, loader)
    with pytest.raises(ValueError, match=rf"^data: {match}"):
        pb.sample(built, loader, kernel=HMC(), num_samples=1, progress=False)
    seen = model(len(sampler) + 1)
    with pytest.raises(ValueError, match=r"^num_data: "):
        Laplace(seen, structure="full").fit(seen, loader)


def test_rows_that_are_dropped_are_missing_from_curvature() -> None:
    loader: DataLoader = DataLoader(DATA, 6, drop_last=True)
    with pytest.raises(ValueError, match="it yielded 18 rows, but the model has num_data=20"):
        Laplace(model(20), structure="full").fit(model(20), loader)
    with pytest.raises(ValueError, match="the loader yielded 18 rows in one pass"):
        pb.sample(model(20), loader, kernel=HMC(), num_samples=1, progress=False)
    with pytest.raises(ValueError, match=r"^num_data: .* 18 data, but the loader's data set has 20 rows"):
        Laplace(model(18), structure="full").fit(model(18), loader)


def test_what_loaders_state() -> None:
    assert stated_rows(LOADERS["stream"][0]) == stated_rows(LOADERS["unbatched"][0]) == stated_rows([]) == ()
    assert stated_rows(LOADERS["list"][0]) == (20,)
    assert stated_rows(DataLoader(DATA, 6, sampler=WeightedRandomSampler([1.0] * 20, 12))) == (12, 20)
    check_stated_rows(None, LOADERS["all"][0], None)
    check_stated_rows(3, LOADERS["all"][0], lambda raw: raw)  # a reader may make other rows
    check_counted_rows(20, LOADERS["all"][0], 18, None)  # some are dropped
    with pytest.raises(ValueError, match="yielded 18 rows in one pass"):
        check_counted_rows(20, LOADERS["stream"][0], 18, None)


# ------------------------------------------------------------------------------------------- models of one's own


def own(size: int, taken: int | None = None) -> Any:
    """A regression in plain Pyro; of the rows it is given it uses ``taken`` if that is stated."""

    def regression(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(()).double(), 1.0))
        rows = None if taken is not None or size == len(x) else torch.arange(len(x))
        with pyro.plate("data", size, subsample=rows, subsample_size=taken) as index:
            if taken is not None:
                x, y = x[index], y[index]
            pyro.sample("y", dist.Normal(weight * x[:, 0], 1.0), obs=y[:, 0])

    return regression


class Declaring(nn.Module):
    """A model that says how many data it is for."""

    num_data = 20

    def forward(self, x: Tensor, y: Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("weight", dist.Normal(0.0, 1.0)) * x, 1.0).to_event(2), obs=y)


@pytest.mark.parametrize("kernel", [SGLD(step_size=1e-4), HMC()], ids=["sgld", "hmc"])
def test_all_data_of_models_of_ones_own_are_as_many_as_they_state(kernel: Any) -> None:
    """By a plate's size or an attribute; a model that takes some of the rows by itself is left alone."""
    for built in (own(20), Declaring()):
        with pytest.raises(
            ValueError, match=r"^num_data: .* 20 data, but data has 12 rows, .* would count 1\.667 times"
        ):
            pb.sample(built, (X[:12], Y[:12]), kernel=kernel, num_samples=1, progress=False)
    for built in (own(20), own(20, taken=5)):
        before = torch.get_rng_state()
        pb.sample(built, (X, Y), kernel=SGLD(1e-4), num_samples=2, seed=0, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
