"""What every method of influence must do, on a network with a norm layer and dropout."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn import guides, influence
from tests.influence.problems import Problem, classifier

Made = influence.Influence
Maker = Callable[..., Made]


@functools.cache
def problem(dtype: torch.dtype = torch.float64) -> Problem:
    return classifier(dtype=dtype)


@functools.cache
def laplace(structure: str, dtype: torch.dtype = torch.float64) -> guides.Laplace:
    own = problem(dtype)
    return guides.Laplace(own.model, init=own.guide, structure=structure).fit(own.model, own.loader)  # type: ignore


def with_laplace(kind: Any, structure: str) -> Maker:
    def make(model: Any, guide: guides.Guide, loader: Any, **options: Any) -> Made:
        return kind(model, laplace(structure, next(guide.parameters()).dtype), loader, **options)

    return make


def with_posterior(make: Callable[[Any], guides.Guide]) -> Maker:
    def build(model: Any, guide: guides.Guide, loader: Any, **options: Any) -> Made:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return influence.PosteriorCovariance(model, make(model), loader, num_samples=8, **options)

    return build


METHODS: dict[str, Maker] = {
    "Exact": influence.Exact,
    "Exact, Gauss-Newton": functools.partial(influence.Exact, matrix="gauss_newton"),
    "ConjugateGradient": influence.ConjugateGradient,
    "LiSSA": functools.partial(influence.LiSSA, depth=20, damping=5.0, tolerance=10.0),
    "Laplace, full": with_laplace(influence.LaplaceCurvature, "full"),
    "Laplace, last layer": with_laplace(influence.LaplaceCurvature, "last_layer"),
    "Laplace, Kronecker": with_laplace(influence.LaplaceCurvature, "kronecker"),
    "Laplace, diagonal": with_laplace(influence.LaplaceCurvature, "diagonal"),
    "EKFAC": influence.EKFAC,
    "RandomProjection": functools.partial(influence.RandomProjection, dim=8),
    "RandomProjection, trak": functools.partial(influence.RandomProjection, dim=8, kernel="trak", damping=1.0),
    "mean field": with_posterior(guides.MeanField),
    "Laplace guide": with_posterior(lambda model: laplace("full", next(model.parameters()).dtype)),
    "ensemble": with_posterior(lambda model: guides.DeltaMixture(model, 8)),
    "chains": with_posterior(
        lambda model: guides.Chains.from_draws(
            model, {n: v.unsqueeze(0) for n, v in guides.MeanField(model).sample(8).items()}
        )
    ),
}


@pytest.fixture(params=METHODS)
def make(request: Any) -> Maker:
    return METHODS[request.param]


def built(make: Maker, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Made, Problem]:
    own = problem(dtype)
    return make(own.model, own.guide, own.loader, **options), own


def test_shapes_and_what_follows_from_the_contract(make: Maker) -> None:
    """T x N; groups are sums of rows; self-influence is the own row's; positive."""
    method, own = built(make)
    assert method.num_rows == 24
    found = method.upweighting(own.test_x, own.test_y)
    assert found.shape == (6, 24) and found.dtype == torch.float64 and bool(found.isfinite().all())
    assert float(found.abs().max()) > 0
    removal = method.removal(own.test_x, own.test_y)
    torch.testing.assert_close(removal, -found)
    groups = [[0, 5], [23], [3, 12, 13]]
    by_group = method.removal(own.test_x, own.test_y, groups)
    torch.testing.assert_close(by_group, torch.stack([removal[:, g].sum(1) for g in groups], 1))
    mask = torch.zeros(3, 24, dtype=torch.bool)
    for row, group in enumerate(groups):
        mask[row, group] = True
    assert torch.equal(method.removal(own.test_x, own.test_y, mask), by_group)
    mine = method.self_influence()
    assert mine.shape == (24,) and bool((mine > 0).all())
    torch.testing.assert_close(mine, -method.upweighting(own.x, own.y).diagonal(), rtol=1e-4, atol=1e-10)
    moved = method.perturbation(own.test_x, own.test_y, [1, 20, 4])
    assert moved.shape == (6, 3, 2) and bool(moved.isfinite().all())
    torch.testing.assert_close(moved[:, :1], method.perturbation(own.test_x, own.test_y, [1]), rtol=1e-4, atol=1e-8)
    part = method.upweighting(own.test_x[:2], own.test_y[:2])
    torch.testing.assert_close(part, found[:2], rtol=1e-4, atol=1e-8)


def test_the_same_again_and_nothing_else_is_touched(make: Maker) -> None:
    """Two objects agree to the bit; random state, modes, buffers, parameters and data are as before."""
    own = problem()
    own.model.train()
    before = copy.deepcopy(own.model.state_dict()), copy.deepcopy(own.guide.state_dict()), own.x.clone()
    modes = [module.training for module in own.model.modules()]
    needed = [parameter.requires_grad for parameter in own.model.parameters()]
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        method, _ = built(make)
        results.append((method.upweighting(own.test_x, own.test_y), method.perturbation(own.test_x, own.test_y, [3])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in own.model.modules()] == modes
    assert [parameter.requires_grad for parameter in own.model.parameters()] == needed
    for now, then in ((own.model.state_dict(), before[0]), (own.guide.state_dict(), before[1])):
        assert all(torch.equal(now[name], then[name]) for name in then)
    assert torch.equal(own.x, before[2])
    assert all(parameter.grad is None for parameter in own.model.parameters())


def test_blocks_without_gradients_change_nothing(make: Maker) -> None:
    method, own = built(make)
    expected = method.upweighting(own.test_x, own.test_y), method.perturbation(own.test_x, own.test_y, [0])
    with torch.no_grad():
        method, _ = built(make)
        assert torch.equal(method.upweighting(own.test_x, own.test_y), expected[0])
        assert torch.equal(method.perturbation(own.test_x, own.test_y, [0]), expected[1])


def test_single_precision_comes_near_double(make: Maker) -> None:
    """To 2 % of the largest entry, for methods whose random numbers are the same in both."""
    single, own = built(make, torch.float32)
    found = single.upweighting(own.test_x, own.test_y)
    assert found.dtype == torch.float32
    if isinstance(single, influence.PointInfluence):
        method, twice = built(make)
        expected = method.upweighting(twice.test_x, twice.test_y)
        assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_a_row_of_weight_two_counts_as_two(make: Maker) -> None:
    """Removal and self-influence have the factor; rows of weight 0 have no influence when removed."""
    own = problem()
    weight = torch.ones(24, dtype=torch.float64)
    weight[2], weight[7] = 2.0, 0.0
    loader = [(own.x, own.y, weight)]
    method = make(own.model, influence.refit(own.model, own.guide, loader), loader)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "guide: the log joint density has no maximum")  # Laplace, at other weights
        found = method.upweighting(own.test_x, own.test_y)
    torch.testing.assert_close(method.removal(own.test_x, own.test_y), -found * weight)
    assert float(method.self_influence()[7]) == 0.0
    assert float(method.perturbation(own.test_x, own.test_y, [7]).abs().max()) == 0.0


def test_a_loader_and_other_batches_give_the_same(make: Maker) -> None:
    """Also when a row is reached through another batch; LiSSA, whose batches are its terms, is left out."""
    own = problem()
    if isinstance(make, functools.partial) and make.func is influence.LiSSA:
        pytest.skip("its batches are the terms of the series")
    loader = DataLoader(TensorDataset(own.x, own.y), 7)
    method, other = make(own.model, own.guide, loader), make(own.model, own.guide, own.loader)
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-9)
    close(method.upweighting(own.test_x, own.test_y), other.upweighting(own.test_x, own.test_y))
    close(method.perturbation(own.test_x, own.test_y, [20, 3]), other.perturbation(own.test_x, own.test_y, [20, 3]))


def bad_data(own: Problem) -> Iterator[tuple[Any, type[Exception], str]]:
    x, y = own.x, own.y
    yield [(x[:-1], y[:-1])], ValueError, r"^num_data: "
    yield iter([(x[:-1], y[:-1])]), ValueError, r"^loader: it yielded 23 rows"
    yield DataLoader(TensorDataset(x, y), 8, shuffle=True), ValueError, r"^loader: it shuffles"
    yield [(x, y[:-1])], ValueError, r"^(num_data|y): "
    yield [(x, y + 3)], ValueError, r"^y: "
    yield [(x, y.double())], TypeError, r"^y: "
    yield [(x * float("nan"), y)], ValueError, r"^x: "
    yield [(x, y, -torch.ones(24).double())], ValueError, r"^weight: "
    yield [(x, y, torch.ones(23).double())], ValueError, r"^loader: the weights"


def test_bad_training_data_are_refused(make: Maker) -> None:
    own = problem()
    for loader, kind, message in bad_data(own):
        with pytest.raises(kind, match=message):
            make(own.model, own.guide, loader)


def test_bad_test_data_and_rows_are_refused(make: Maker) -> None:
    method, own = built(make)
    x, y = own.test_x, own.test_y
    for inputs, targets, kind in (
        (x, y[:-1], ValueError),
        (x, y + 3, ValueError),
        (x, y.double(), TypeError),
        (x * float("inf"), y, ValueError),
        (x.numpy(), y, TypeError),
        (x, y.tolist(), TypeError),
    ):
        with pytest.raises(kind, match=r"^(x|y)(: |, y: )"):
            method.upweighting(inputs, targets)
    for rows, kind in (([24], ValueError), ([-1], ValueError), ([], ValueError), (["a"], TypeError), (1.5, TypeError)):
        with pytest.raises(kind, match=r"^rows: "):
            method.perturbation(x, y, rows)  # type: ignore[arg-type]
    for groups in ([], [[]], [[0, 0]], [[24]], torch.ones(2, 23).bool(), "ab", 3):
        with pytest.raises((TypeError, ValueError), match=r"^groups: "):
            method.removal(x, y, groups)  # type: ignore[arg-type]


def test_a_pyro_model_of_ones_own_is_refused(make: Maker) -> None:
    own = problem()
    with pytest.raises((TypeError, ValueError), match=r"^model: "):
        make(own.model.net, own.guide, own.loader)


def test_integer_inputs_have_no_derivative() -> None:
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 3))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6)
    x, y = torch.randint(5, (6, 2), generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    guide = influence.refit(model, guides.MAP(model), [(x, y)])
    for method in (
        influence.Exact(model, guide, [(x, y)], matrix="gauss_newton"),
        influence.PosteriorCovariance(model, guides.MeanField(model), [(x, y)], num_samples=5),
    ):
        assert method.upweighting(x, y).shape == (6, 6)
        with pytest.raises(TypeError, match=r"^loader: its inputs are a torch.int64"):
            method.perturbation(x, y, [0])
