"""Every guide as the start of every other: where each begins, and starts that cannot be right."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn import guides
from pyrobnn.model.draws import Draws
from tests.conformance.conjugate import ConjugateRegression

N = 12
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def model(*, batch_norm: bool = False) -> pb.SupervisedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        middle: list[nn.Module] = [nn.BatchNorm1d(3)] if batch_norm else []
        net = nn.Sequential(nn.Linear(2, 3), *middle, nn.Tanh(), nn.Linear(3, 1))
    noise = pb.likelihoods.Normal(dist.LogNormal(0.0, 1.0))
    return pb.SupervisedModel(net, noise, dist.Normal(0.0, 1.0), num_data=N)


MODEL = model()
LAYOUT = guides.MAP(MODEL).layout


def moved(guide: Any) -> Any:
    """Away from where guides start by themselves."""
    torch.manual_seed(7)
    for name, parameter in guide.named_parameters():
        if not name.startswith("log_scale"):
            parameter.data.add_(torch.randn_like(parameter))
    return guide


def swag() -> guides.SWAG:
    guide = guides.SWAG(MODEL, rank=3)
    for _ in range(3):
        moved(guide).collect()
        guide.flat_loc.data.add_(torch.rand_like(guide.flat_loc))
    return moved(guide)


def chains() -> guides.Chains:
    torch.manual_seed(3)
    draws = {name: site.prior.sample((2, 5)) for name, site in LAYOUT.items()}
    return guides.Chains.from_draws(MODEL, draws)


def first_member(guide: Any) -> Mapping[str, Tensor]:
    return {name: value.detach() for name, value in guide.member(0).items()}


def at(name: str) -> Callable[[Any], Mapping[str, Tensor]]:
    """The values at one flat tensor of the guide."""
    return lambda guide: LAYOUT.constrain(LAYOUT.split(getattr(guide, name).detach()))


RULES: list[Any] = [("net.2.*", guides.MeanField), ("*", guides.MAP)]
SOURCES: dict[str, tuple[Callable[[], Any], Callable[[Any], Mapping[str, Tensor]]]] = {
    "MAP": (lambda: moved(guides.MAP(MODEL)), at("flat_loc")),
    "MeanField": (lambda: moved(guides.MeanField(MODEL)), at("flat_loc")),
    "LowRankNormal": (lambda: moved(guides.LowRankNormal(MODEL, rank=2)), at("flat_loc")),
    "Laplace": (lambda: moved(guides.Laplace(MODEL, structure="full")), at("flat_loc")),
    "Laplace, fitted": (
        lambda: moved(guides.Laplace(MODEL, structure="full")).fit(MODEL, [(X, Y)]),
        at("flat_loc"),
    ),
    "SWAG": (lambda: moved(guides.SWAG(MODEL)), at("flat_loc")),
    "SWAG, fitted": (swag, at("mean")),
    "MCDropout": (lambda: moved(guides.MCDropout(MODEL)), at("flat_loc")),
    "DeltaMixture": (lambda: moved(guides.DeltaMixture(MODEL, 3)), first_member),
    "LowRankEnsemble": (lambda: moved(guides.LowRankEnsemble(MODEL, 3)), first_member),
    "Chains": (chains, lambda guide: {name: value[0, -1] for name, value in guide.by_chain().items()}),
    "Composite": (
        lambda: moved(guides.Composite(MODEL, RULES)),
        lambda guide: {**guide.part("net.0.weight").starting_point(), **guide.part("net.2.weight").starting_point()},
    ),
}
if importlib.util.find_spec("zuko"):  # the extra flows
    SOURCES["NormalizingFlow"] = (lambda: moved(guides.NormalizingFlow(MODEL, 2, hidden=(4,))), at("loc"))
TARGETS: dict[str, Callable[..., Any]] = {
    "MAP": guides.MAP,
    "MeanField": guides.MeanField,
    "LowRankNormal": guides.LowRankNormal,
    "Laplace": functools.partial(guides.Laplace, structure="diagonal"),
    "SWAG": guides.SWAG,
    "MCDropout": guides.MCDropout,
}


def assert_values(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == set(LAYOUT)
    for name in LAYOUT:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_any_guide_starts_any_guide_of_one_point_or_mean(source: str) -> None:
    make, point = SOURCES[source]
    guide = make()
    expected = point(guide)
    for target in TARGETS.values():
        started = target(MODEL, init=guide)
        assert_values(at("flat_loc")(started), expected)
        assert started.flat_loc.data_ptr() != next(guide.parameters()).data_ptr()
    shared = guides.LowRankEnsemble(MODEL, 2, spread=1e-6, init=guide)
    torch.testing.assert_close(shared.member(0)["net.0.weight"].detach(), expected["net.0.weight"], rtol=1e-4, atol=0.0)


def test_a_family_without_a_point_of_its_own_starts_others_at_a_draw() -> None:
    generator = guides.Generator(MODEL, hidden=(4,), latent_dim=2)
    torch.manual_seed(5)
    expected = generator.sample(1).at(0)
    torch.manual_seed(5)
    assert_values(at("flat_loc")(guides.MAP(MODEL, init=generator)), expected)


@pytest.mark.parametrize("source", ["MAP", "Laplace", "SWAG"])
def test_members_start_around_a_point(source: str) -> None:
    make, point = SOURCES[source]
    guide = make()
    mixture = guides.DeltaMixture(MODEL, 3, init=guide, spread=0.05)
    center = LAYOUT.join({name: LAYOUT[name].unconstrain(value) for name, value in point(guide).items()})
    distance = (mixture.flat_loc.detach() - center).square().mean().sqrt() / center.square().mean().sqrt()
    assert 0.01 < float(distance) < 0.1
    assert len({tuple(row.tolist()) for row in mixture.flat_loc}) == 3


@pytest.mark.parametrize("source", ["MeanField", "LowRankNormal", "SWAG, fitted", "MCDropout", "Composite"])
def test_members_are_draws_of_a_distribution(source: str) -> None:
    guide = SOURCES[source][0]()
    torch.manual_seed(11)
    expected = guide.sample(4)
    torch.manual_seed(11)
    mixture = guides.DeltaMixture(MODEL, 4, init=guide)
    assert_values(mixture.stacked(torch.arange(4)), expected)


@pytest.mark.parametrize("source", ["DeltaMixture", "LowRankEnsemble"])
def test_members_are_those_of_an_ensemble(source: str) -> None:
    guide = SOURCES[source][0]()
    mixture = guides.DeltaMixture(MODEL, 3, init=guide)
    own = [guide.member(index)["net.0.weight"].detach() for index in range(3)]
    for member in mixture.stacked(torch.arange(3))["net.0.weight"]:
        assert sum(torch.allclose(member, other, atol=1e-6) for other in own) == 1
    with pytest.raises(ValueError, match=rf"^init: the {source} guide has 3 points for num_members=4"):
        guides.DeltaMixture(MODEL, 4, init=guide)


def test_members_are_different_draws_of_chains() -> None:
    mixture = guides.DeltaMixture(MODEL, 5, init=chains())
    assert len({tuple(row.tolist()) for row in mixture.flat_loc}) == 5


def test_running_statistics_come_with_the_members() -> None:
    built = model(batch_norm=True)
    ensemble = guides.DeltaMixture(built, 2)
    pb.fit(built, ensemble, [(X, Y)], epochs=3, lr=1e-2, progress=False)
    again = guides.DeltaMixture(built, 2, init=ensemble)
    from_draws = guides.DeltaMixture(built, 2, init=ensemble.sample(2))
    for copy in (again, from_draws):
        means = copy.atoms(torch.arange(2)).buffers["net.net.1.running_mean"]
        own = ensemble.atoms(torch.arange(2)).buffers["net.net.1.running_mean"]
        assert torch.equal(means.sort(0).values, own.sort(0).values)
    for init in (ensemble, ensemble.sample(1)):
        with pytest.raises(ValueError, match=r"^init: .* buffer 'net.net.1.running_mean' of its own.*dict\(draws\)"):
            guides.MeanField(built, init=init)
    values = dict(ensemble.starting_point())
    found = guides.MeanField(built, init=values).sample(1)
    torch.testing.assert_close(found["net.0.weight"][0], values["net.0.weight"], atol=0.1, rtol=0.0)


# ------------------------------------------------------------------------------------------------------- draws


def test_draws_start_a_guide_at_the_first_and_members_at_each() -> None:
    draws = SOURCES["MeanField"][0]().sample(3)
    for given in (draws, dict(draws), draws.at(slice(0, 1))):
        assert_values(at("flat_loc")(guides.MAP(MODEL, init=given)), draws.at(0))
    assert_values(at("flat_loc")(guides.MAP(MODEL, init=draws.at(2))), draws.at(2))
    for given in (draws, dict(draws)):
        assert_values(guides.DeltaMixture(MODEL, 3, init=given).stacked(torch.arange(3)), draws)
        assert_values(guides.DeltaMixture(MODEL, 2, init=given).stacked(torch.arange(2)), draws.at(slice(0, 2)))
        with pytest.raises(ValueError, match=r"^init: 3 draws for num_members=4; give one for each"):
            guides.DeltaMixture(MODEL, 4, init=given)


def test_values_of_different_numbers_of_draws_are_refused() -> None:
    draws = dict(SOURCES["MeanField"][0]().sample(3))
    draws["net.0.bias"] = draws["net.0.bias"][:2]
    with pytest.raises(ValueError, match=r"^init: the value for the site 'net.0.weight' has shape \(3, 3, 2\)"):
        guides.MAP(MODEL, init=draws)


@pytest.mark.parametrize("source", ["MAP", "MeanField", "Laplace", "SWAG", "DeltaMixture", "Chains"])
def test_chains_start_from_any_guide(source: str) -> None:
    guide = SOURCES[source][0]()
    kernel = pb.sampling.SGLD(step_size=1e-12)
    found = pb.sample(MODEL, [(X, Y)], kernel=kernel, num_samples=1, num_chains=2, init=guide, seed=0, progress=False)
    starts = found.by_chain()["net.0.weight"][:, 0]
    if not guide.facts.is_ready or guide.facts.num_points == 1:
        expected = guide.starting_point()["net.0.weight"].expand(2, -1, -1)
        torch.testing.assert_close(starts, expected, atol=1e-4, rtol=0.0)
    else:
        assert float((starts[0] - starts[1]).abs().max()) > 1e-3


def test_chains_start_from_draws() -> None:
    draws = SOURCES["MeanField"][0]().sample(3)
    kernel = pb.sampling.SGLD(step_size=1e-12)
    run = functools.partial(pb.sample, MODEL, [(X, Y)], kernel=kernel, num_samples=1, progress=False)
    found = run(num_chains=2, init=draws).by_chain()["net.2.weight"][:, 0]
    torch.testing.assert_close(found, draws["net.2.weight"][:2], atol=1e-4, rtol=0.0)
    with pytest.raises(ValueError, match=r"^init: 3 draws for num_chains=4; give one for each"):
        run(num_chains=4, init=draws)


# ---------------------------------------------------------------------------------------------------- refusals


def test_guides_of_other_models_are_refused() -> None:
    other = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=N)
    wider = pb.SupervisedModel(
        nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)),
        pb.likelihoods.Normal(dist.LogNormal(0.0, 1.0)),
        dist.Normal(0.0, 1.0),
        num_data=N,
    )
    for make in (guides.MAP, guides.DeltaMixture, functools.partial(guides.DeltaMixture, num_members=2)):
        with pytest.raises(ValueError, match=r"^init: the MeanField guide has no site 'net.0.weight'"):
            make(MODEL, init=guides.MeanField(other))
        with pytest.raises(ValueError, match=r"^init: the value for the site 'net.0.weight' has shape \(4, 2\)"):
            make(MODEL, init=guides.MeanField(wider))
    part = guides.MAP(MODEL, sites=["net.0.weight"])
    with pytest.raises(ValueError, match=r"^init: the MAP guide has no site 'net.0.bias'"):
        guides.MeanField(MODEL, init=part)
    fixed = pb.SupervisedModel(
        nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)),
        pb.likelihoods.Normal(1.0),
        dist.Normal(0.0, 1.0),
        num_data=N,
    )
    with pytest.raises(ValueError, match=r"^init: the MAP guide has a site 'likelihood.scale', which"):
        guides.MAP(fixed, init=guides.MAP(MODEL))
    with pytest.raises(TypeError, match=r"^init: expected a network, a guide,"):
        guides.MeanField(MODEL, init=guides.MAP)


def test_a_guide_of_some_sites_takes_theirs_from_a_guide_of_all() -> None:
    whole = SOURCES["MeanField"][0]()
    part = guides.MAP(MODEL, init=whole, sites=["net.2.weight", "net.2.bias"])
    torch.testing.assert_close(part.point()["net.2.bias"].detach(), at("flat_loc")(whole)["net.2.bias"])


# -------------------------------------------------------------------------------------------- when data are added


def test_the_guide_is_kept_when_data_are_added() -> None:
    """The recipe: the model's new N, the same guide, another fit; it ends at the posterior of all data."""
    problem = ConjugateRegression()
    built = problem.model()
    guide = guides.MAP(built).double()
    half = problem.num_data // 2
    schedule = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.985)
    settings: dict[str, Any] = {"epochs": 400, "lr": 0.05, "scheduler": schedule, "progress": False}
    built.num_data = half
    pb.fit(built, guide, [(problem.x[:half], problem.y[:half])], **settings)
    before = guide.flat_loc.detach().clone()
    with pytest.raises(ValueError, match=r"^num_data: "):
        pb.fit(built, guide, DataLoader(TensorDataset(problem.x, problem.y)), **settings)
    built.num_data = problem.num_data
    pb.fit(built, guide, [(problem.x, problem.y)], **settings)
    assert not torch.allclose(before, problem.mean, rtol=1e-2)
    torch.testing.assert_close(guide.flat_loc.detach(), problem.mean, rtol=1e-4, atol=1e-4)


def test_draws_of_one_value_each_are_still_values() -> None:
    values = Draws(SOURCES["MAP"][0]().point()).at(...)
    assert_values(at("flat_loc")(guides.MAP(MODEL, init=values)), values)
