"""Generators: the conformance suite as far as it needs no density, storage, refusals, checkpoints."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import likelihoods
from pyrobnn.diagnostics import check, weight_statistics
from pyrobnn.guides import MAP, Composite, Generator, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from tests.conformance.comparisons import seeded
from tests.conformance.guide_models import CASES, Case
from tests.conformance.guide_suite import GuideConformance
from tests.conformance.monte_carlo import Z, z_of_mean

each_case = pytest.mark.parametrize("case", CASES, ids=str)


class TestGeneratorConformance(GuideConformance):
    """What every guide must do; what needs an objective is refused, and steps are on the draws, as a critic's."""

    has_density = False
    trains = False
    has_divergence = False
    refusal = "Generator is an implicit distribution"

    def make_guide(self, model: nn.Module, **options: Any) -> Generator:
        return Generator(model, (6, 5), 3, **options)

    @each_case
    @pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, ELBO])
    def test_objectives_are_refused(self, case: Case, objective: type) -> None:
        model, guide, batch = self.build(case)
        with pytest.raises(NotImplementedError, match="Generator is an implicit distribution"):
            objective().loss_and_grads(model, guide, *batch)

    @each_case
    def test_a_guide_gives_the_same_sites_as_its_model(self, case: Case) -> None:
        _, guide, _ = self.build(case)
        twin = Generator(guide, (6, 5), 3)
        assert list(twin.layout.values()) == list(guide.layout.values())


class TestGeneratorAlongAxes(TestGeneratorConformance):
    """Coordinates along two axes in place of weights."""

    def make_guide(self, model: nn.Module, **options: Any) -> Generator:
        return Generator(model, (6, 5), 3, components=2, **options)


def make(net: nn.Module | None = None, **options: Any) -> tuple[SupervisedModel, Generator]:
    net = net or nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    model = SupervisedModel(net, likelihoods.Normal(dist.LogNormal(0.0, 0.5)), dist.Normal(0.0, 1.0), num_data=8)
    return model, Generator(model, **options)


# ------------------------------------------------------------------------------------------------- the formula


@pytest.mark.statistical
def test_a_linear_generator_is_a_gaussian() -> None:
    """``w = m + s (A z + b)``: mean and second moments of 20 000 draws; z-scores below 5; constants stay put."""
    _, guide = make(nn.Linear(3, 1), hidden=(), latent_dim=2)
    assert len(guide.network) == 1
    with torch.no_grad():
        guide.loc.copy_(torch.arange(5.0))
        guide.scale.copy_(torch.tensor([1.0, 2.0, 0.0, 0.5, 0.1]))
        guide.network[0].bias.copy_(torch.linspace(-1, 1, 5))
    a, b = guide.network[0].weight.detach(), guide.network[0].bias.detach()
    torch.manual_seed(1)
    draws = guide.sample(20_000)
    flat = guide.layout.join({**draws, "likelihood.scale": draws["likelihood.scale"].log()})
    mean = guide.loc + guide.scale * b
    mixed = guide.scale[:, None] * a
    centered = flat - mean
    varies = guide.scale > 0
    assert torch.equal(flat[:, 2], torch.full((20_000,), 2.0))
    assert z_of_mean(flat[:, varies], mean[varies]) < Z
    products = centered[:, :, None] * centered[:, None]
    assert z_of_mean(products[:, varies][:, :, varies], (mixed @ mixed.T)[varies][:, varies], rounding=1e-3) < Z


@pytest.mark.parametrize("components", [None, 10])
def test_starts_with_noise_of_the_right_size(components: int | None) -> None:
    """Standard deviations of outputs at the start: within a factor of two of one."""
    _, guide = make(nn.Linear(20, 20), hidden=(100, 100, 100), components=components)
    torch.manual_seed(0)
    spread = guide.standardized(1000).detach().std(0)
    assert 0.5 < float(spread.median()) < 2.0


@pytest.mark.parametrize("components", [None, 3])
def test_coordinates_that_are_moved(components: int | None) -> None:
    """Flat draws afterward are those that coordinates ``(c - mean) factor`` would have made before."""
    _, guide = make(nn.Linear(4, 1), components=components)
    guide.double()
    guide.scale.copy_(torch.linspace(0.5, 2.0, guide.layout.size))
    mean, factor = torch.randn(2, guide.num_coordinates).double()
    made = seeded(lambda: guide.coordinates(5)).detach()
    moved = (made - mean) * factor
    expected = guide.loc + guide.scale * (moved if guide.basis is None else moved @ guide.basis)
    guide.move_coordinates(mean, factor)
    torch.testing.assert_close(seeded(lambda: guide.flat(5)).detach(), expected)


# ------------------------------------------------------------------------------------------------------ storage


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=3), st.integers(1, 9), st.integers(1, 5))
def test_storage(hidden: list[int], latent_dim: int, inputs: int) -> None:
    _, guide = make(nn.Linear(inputs, 1), hidden=hidden, latent_dim=latent_dim, num_samples=40)
    sizes = [latent_dim, *hidden, guide.layout.size]
    expected = sum((a + 1) * b for a, b in itertools.pairwise(sizes)) + 2 * guide.layout.size
    assert guide.num_parameters == expected
    assert guide.storage_ratio == expected / (40 * guide.layout.size)
    assert guide.storage(80).ratio == guide.storage_ratio / 2
    assert guide.sample(3)["net.weight"].shape == (3, 1, inputs)


def test_storage_without_a_number_of_draws() -> None:
    _, guide = make()
    assert guide.storage_ratio is None
    assert str(guide.storage()) == f"{guide.num_parameters:,} numbers"
    assert "in 1,000 draws" in str(guide.storage(1000))


# --------------------------------------------------------------------------------------------- with the others


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model, guide = make(hidden=(4,), latent_dim=2, num_samples=7)
    guide.scale[1] = 0.0
    pb.save(tmp_path / "saved", model, guide)
    loaded_model, loaded = pb.load(tmp_path / "saved", nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    assert (loaded.hidden, loaded.latent_dim, loaded.num_samples) == ((4,), 2, 7)
    x = torch.randn(3, 2)
    expected = pb.predict(model, guide, x, 4, seed=1).mean
    assert torch.equal(pb.predict(loaded_model, loaded, x, 4, seed=1).mean, expected)


def test_prediction_and_pyros_predictive_and_description() -> None:
    model, guide = make()
    x = torch.randn(5, 2)
    draws = pb.predict(model, guide, x, 6, return_draws=True, seed=0).draws
    assert len(draws.unique(dim=0)) == 6
    assert Predictive(model, guide=guide, num_samples=3)(x)["y"].shape == (3, 5, 1)
    rows = pb.describe(model, guide).rows
    assert {row["posterior"] for row in rows} == {"Generated"}
    assert {row["kl"] for row in rows} == {None}


def test_checks_and_statistics_work_on_draws() -> None:
    model, guide = make()
    statistics = weight_statistics(model, guide, num_samples=50)
    assert all(w.at_prior is None and w.signal_to_noise is not None for w in statistics.values())
    report = check(model, guide, [(torch.randn(8, 2), torch.randn(8, 1))], num_samples=25)
    assert "Generator has no density" in str(report)


def test_guide_map_takes_it_for_some_sites() -> None:
    model, _ = make()
    mixed = Composite(model, [("net.2.*", lambda m, **o: Generator(m, (4,), 2, **o)), ("*", MAP)])
    draws = mixed.sample(8)
    assert len(draws["net.2.weight"].unique(dim=0)) == 8
    assert len(draws["net.0.weight"].unique(dim=0)) == 1
    with pytest.raises(NotImplementedError, match="Generator is an implicit"):
        ELBO().loss(model, mixed, torch.randn(8, 2), torch.randn(8, 1))


def test_fit_is_refused() -> None:
    model, guide = make()
    loader = [(torch.randn(8, 2), torch.randn(8, 1))]
    with pytest.raises(NotImplementedError, match=r"Train it with pyrobnn\.distill"):
        pb.fit(model, guide, loader, epochs=1, progress=False)


def test_refusals() -> None:
    model, guide = make()
    with pytest.raises(NotImplementedError, match="Generator is an implicit distribution"):
        guide.log_prob(guide.sample(2))
    factor = guide.marginal("net.0.weight")
    assert factor.sample((2, 3)).shape == (2, 3, 3, 2)
    with pytest.raises(NotImplementedError, match="Generator is an implicit distribution"):
        factor.log_prob(torch.zeros(3, 2))
    for hidden, error in (((0,), ValueError), ((2.5,), ValueError), (7, TypeError), ("ab", TypeError)):
        with pytest.raises(error, match="hidden: expected"):
            Generator(model, hidden)
    for option in ({"latent_dim": 0}, {"num_samples": 0}, {"components": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected a positive int"):
            Generator(model, **option)
    assert isinstance(MeanField(model), pb.guides.Guide)


@pytest.mark.parametrize("components", [None, 3])
def test_gradients_reach_all_parameters(components: int | None) -> None:
    _, guide = make(components=components)
    sum(value.sum() for value in guide.rsample().values()).backward()
    assert all(isinstance(p.grad, Tensor) and bool(p.grad.abs().sum() > 0) for p in guide.parameters())
