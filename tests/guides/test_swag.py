"""SWAG: the conformance suite, the paper's moments of recorded trajectories, and what it refuses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, SWAG
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.reporting.description import describe
from pyrobnn.training import History, fit
from pyrobnn.training.running_statistics import recalibrate_batch_norm
from tests.conformance.comparisons import assert_same, gradients
from tests.conformance.guide_suite import GuideConformance
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.guides.test_base import Sites

Trajectory = NDArray[np.float64]


class TestSWAGConformance(GuideConformance):
    """What every guide must do, after four iterates."""

    is_joint = True
    trains_as_point = True

    def make_guide(self, model: nn.Module, **options: Any) -> SWAG:
        guide = SWAG(model, rank=3, **options)
        start = guide.flat_loc.detach().clone()
        follow(guide, start + 0.2 * torch.randn(4, len(start)))
        with torch.no_grad():
            guide.flat_loc.copy_(start)
        return guide


def follow(guide: SWAG, iterates: Tensor) -> None:
    """Takes the guide along a trajectory ``[n, d]``."""
    for iterate in iterates:
        with torch.no_grad():
            guide.flat_loc.copy_(iterate)
        guide.collect()


def walk(num: int, dim: int = 4) -> Tensor:
    """A trajectory with a trend and noise of different sizes, far from zero."""
    steps = torch.randn(num, dim, dtype=torch.float64) * torch.linspace(0.1, 1.0, dim).double()
    return 3.0 + steps + 0.05 * torch.arange(num).unsqueeze(-1)


def weights(dim: int = 4, **options: Any) -> SWAG:
    prior = dist.Normal(0.0, 1.0).expand([dim]).to_event(1)
    return SWAG(Sites(w=prior), example=(), **options).double()


def moments(iterates: Trajectory, rank: int) -> tuple[Trajectory, Trajectory]:
    """Mean and covariance as in the paper, from running moments and the last deviations from running means."""
    mean = np.zeros(iterates.shape[1])
    square = np.zeros(iterates.shape[1])
    columns: list[Trajectory] = []
    for count, iterate in enumerate(iterates):
        mean = (count * mean + iterate) / (count + 1)
        square = (count * square + iterate**2) / (count + 1)
        columns = [*columns, iterate - mean][-rank:]
    deviations = np.stack(columns, 1)
    return mean, 0.5 * np.diag(square - mean**2) + 0.5 * deviations @ deviations.T / (len(columns) - 1)


def dense(guide: SWAG) -> dist.MultivariateNormal:
    found = guide.joint()
    return dist.MultivariateNormal(found.loc, found.cov_factor @ found.cov_factor.T + torch.diag(found.scale.square()))


# ------------------------------------------------------------------------------------------------ trajectories


@pytest.mark.parametrize("num", [2, 3, 5, 6, 13])
def test_moments_are_those_of_the_paper(num: int) -> None:
    """Fewer iterates than the rank, as many, and more, when the oldest deviations are overwritten."""
    guide, iterates = weights(rank=5), walk(num)
    follow(guide, iterates)
    mean, covariance = moments(iterates.numpy(), rank=5)
    torch.testing.assert_close(guide.joint().loc, torch.from_numpy(mean))
    torch.testing.assert_close(dense(guide).covariance_matrix, torch.from_numpy(covariance))
    torch.testing.assert_close(guide.joint().variance, torch.from_numpy(covariance.diagonal().copy()))


def test_variance_does_not_cancel_far_from_zero() -> None:
    """Single precision, weights of 1000 that move by 0.01: the difference of moments would be all rounding."""
    guide = weights().float()
    iterates = 1000.0 + 0.01 * torch.randn(50, 4)
    follow(guide, iterates)
    torch.testing.assert_close(guide.variance.double(), iterates.double().var(0, correction=0), rtol=1e-2, atol=0.0)


def test_scale_multiplies_the_deviations() -> None:
    iterates = walk(6)
    plain, half = weights(), weights(scale=0.5)
    for guide in (plain, half):
        follow(guide, iterates)
    assert torch.equal(plain.joint().loc, half.joint().loc)
    torch.testing.assert_close(dense(half).covariance_matrix, 0.25 * dense(plain).covariance_matrix)


@pytest.mark.statistical
def test_draws_have_the_mean_and_the_covariance() -> None:
    """20 000 draws; z-scores below 5."""
    guide = weights(rank=3)
    follow(guide, walk(8))
    draws, expected = guide.sample(20_000)["w"], dense(guide)
    centered = draws - expected.loc
    assert z_of_mean(draws, expected.loc) < Z
    assert z_of_mean(centered.unsqueeze(-1) * centered.unsqueeze(-2), expected.covariance_matrix) < Z


def test_log_prob_is_that_of_the_dense_normal_on_the_sites_supports() -> None:
    prior = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    guide = SWAG(Sites(w=prior, s=dist.HalfCauchy(1.0)), rank=3, example=()).double()
    follow(guide, walk(8))
    draws = guide.sample(5)
    flat = torch.cat([draws["w"], draws["s"].log().unsqueeze(-1)], -1)
    torch.testing.assert_close(guide.log_prob(draws), dense(guide).log_prob(flat) - draws["s"].log())
    window = dense(guide).covariance_matrix[:3, :3]
    marginal = dist.MultivariateNormal(guide.joint().loc[:3], window)
    torch.testing.assert_close(guide.marginal("w").log_prob(draws["w"]), marginal.log_prob(draws["w"]))


def test_a_weight_that_never_moved_stays_where_it_is() -> None:
    guide, iterates = weights(), walk(6)
    iterates[:, 0] = 3.0
    follow(guide, iterates)
    draws = guide.sample(10)
    torch.testing.assert_close(draws["w"][:, 0], torch.full((10,), 3.0).double(), rtol=0.0, atol=1e-12)
    assert bool(guide.log_prob(draws).isfinite().all())


# -------------------------------------------------------------------------------------------------- training


def problem(**options: Any) -> tuple[SupervisedModel, SWAG, DataLoader[Any]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, generator=generator)
    y = x @ torch.randn(3, 1, generator=generator) + 0.3 * torch.randn(32, 1, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SupervisedModel(nn.Linear(3, 1), likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=32)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1))
    return model, SWAG(model, **options), loader


def train(model: nn.Module, guide: SWAG, loader: Any, epochs: int, callbacks: Any, **options: Any) -> History:
    sgd = functools.partial(torch.optim.SGD, momentum=0.5)
    return fit(
        model,
        guide,
        loader,
        epochs=epochs,
        lr=0.02,
        optimizer=sgd,
        callbacks=callbacks,
        seed=3,
        progress=False,
        **options,
    )


@pytest.mark.parametrize(
    ("start", "every", "collected"), [(0, 1, [1, 2, 3, 4, 5, 6]), (4, 1, [5, 6]), (1, 2, [3, 5]), (2, 4, [6])]
)
def test_collector_follows_the_epochs_of_fit(start: int, every: int, collected: list[int]) -> None:
    model, guide, loader = problem(rank=4)
    points: list[Tensor] = []
    train(
        model,
        guide,
        loader,
        6,
        [lambda h: points.append(guide.flat_loc.detach().clone()), guide.collector(start, every)],
    )
    iterates = torch.stack([points[epoch - 1] for epoch in collected]).double()
    assert int(guide.num_collected) == len(collected)
    torch.testing.assert_close(guide.mean.double(), iterates.mean(0))
    torch.testing.assert_close(guide.variance.double(), iterates.var(0, correction=0), rtol=1e-4, atol=1e-10)
    if len(collected) > 1:
        _, covariance = moments(iterates.numpy(), rank=4)
        torch.testing.assert_close(
            dense(guide.double()).covariance_matrix, torch.from_numpy(covariance), rtol=1e-3, atol=1e-8
        )


def test_a_resumed_run_collects_the_same(tmp_path: Path) -> None:
    states = []
    for pieces in ((6,), (4, 6)):
        for epochs in pieces:
            model, guide, loader = problem(rank=4)
            options = {"checkpoint": tmp_path / str(len(pieces)), "resume": True}
            train(model, guide, loader, epochs, [guide.collector(1)], **options)
        states.append(guide.state_dict())
    assert int(states[0]["num_collected"]) == 5
    assert_same(*states)


@pytest.mark.parametrize("collected", [0, 4])
def test_trains_as_the_point_estimate_of_unconstrained_values(collected: int) -> None:
    """The very losses and gradients of MAP, whether or not iterates have been collected."""
    noise = likelihoods.Normal(dist.LogNormal(0.0, 0.5))
    model = SupervisedModel(nn.Linear(3, 1), noise, dist.Normal(0.0, 1.0), num_data=12)
    batch = torch.randn(12, 3), torch.randn(12, 1)
    point, guide = MAP(model, jacobian=True), SWAG(model)
    for _ in range(collected):
        guide.collect()
    assert_same(gradients(model, guide, batch), gradients(model, point, batch))
    terms = {name: PriorTerm(site.prior) for name, site in guide.layout.items()}
    for sequential in (True, False):
        steps = [each.step(model, sequential=sequential) for each in (guide, point)]
        draws = [step.draw(0) for step in steps]
        found = [step.divergence(draw, terms) for step, draw in zip(steps, draws, strict=True)]
        assert_same(*draws)
        torch.testing.assert_close(found[0].total, found[1].total)
        assert found[0].name == found[1].name == "-log prior"


def test_pyros_view_follows_the_mode() -> None:
    model, guide, loader = problem()
    train(model, guide, loader, 4, [guide.collector(0)])
    x = torch.randn(5, 3)
    spread = []
    for mode in (True, False):
        guide.train(mode)
        spread.append(
            Predictive(model, guide=guide, num_samples=3, return_sites=["net.weight"])(x)["net.weight"].std(0)
        )
    assert bool((spread[0] == 0).all()) and bool((spread[1] > 0).all())


def test_batch_norm_is_recalibrated_under_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=16)
    guide = SWAG(model)
    follow(guide, guide.flat_loc.detach() + 0.3 * torch.randn(5, guide.layout.size))
    x = torch.randn(16, 3)
    drawn, sample = [], guide.sample
    monkeypatch.setattr(guide, "sample", lambda num_samples: drawn.append(sample(num_samples)) or drawn[-1])
    recalibrate_batch_norm(model, guide, [x])
    draw = drawn[-1].at(0)
    hidden = x @ draw["net.0.weight"].T + draw["net.0.bias"]
    torch.testing.assert_close(model.net.network[1].running_mean, hidden.mean(0))


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("collected", [0, 1])
def test_a_gaussian_takes_two_iterates(collected: int) -> None:
    guide = weights()
    for _ in range(collected):
        guide.collect()
    point = {"w": guide.flat_loc.detach().unsqueeze(0)}
    for act in (
        lambda: guide.sample(1),
        lambda: guide.log_prob(point),
        guide.joint,
        guide.rsample,
        lambda: guide.eval()(),
    ):
        with pytest.raises(ValueError, match=f"SWAG has collected {collected} of the 2 iterates.*guide.collector"):
            act()
    for _ in range(2 - collected):
        guide.collect()
    assert guide.sample(1)["w"].shape == (1, 4)


def test_factor_is_a_point_until_then() -> None:
    guide = weights()
    assert isinstance(guide.marginal("w").base_dist, dist.Delta)
    assert not guide.facts.is_ready and not guide.facts.density
    for _ in range(2):
        guide.collect()
    assert guide.facts.is_ready and guide.facts.has_density


def test_divergence_is_the_kl_of_the_dense_normals_once_there_is_a_gaussian() -> None:
    guide = weights(rank=3)
    follow(guide, walk(8))
    prior = dist.Normal(0.0, 1.0).expand([4]).to_event(1)
    found = guide.divergence(guide.rsample(), {"w": PriorTerm(prior)})
    expected = torch.distributions.kl_divergence(
        dense(guide), dist.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    )
    assert found.exact and found.name == "KL"
    torch.testing.assert_close(found.total, expected, rtol=1e-6, atol=1e-6)


def test_describe() -> None:
    model, guide, loader = problem()
    train(model, guide, loader, 3, [guide.collector(0)])
    assert [(row["posterior"], row["kl"]) for row in describe(model, guide).rows] == [("LowRankGaussian", "exact")] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 1}, "rank: expected an int of at least 2"),
        ({"rank": True}, "rank: expected an int of at least 2"),
        ({"rank": 4.0}, "rank: expected an int of at least 2"),
        ({"scale": 0.0}, "scale: expected a positive factor"),
        ({"scale": float("nan")}, "scale: expected a positive factor"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights(**options)


@pytest.mark.parametrize(
    ("start", "every", "name"), [(-1, 1, "start"), (1.5, 1, "start"), (0, 0, "every"), (0, True, "every")]
)
def test_bad_collectors(start: Any, every: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a"):
        weights().collector(start, every)


def test_only_some_sites() -> None:
    guide = SWAG(Sites(a=dist.Normal(0.0, 1.0), b=dist.Normal(0.0, 1.0)), example=(), sites=["b"])
    assert list(guide.layout) == ["b"] and guide.deviations.shape == (20, 1)
