"""What guides share: finding the model's sites, starting values, the flat vector."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn import likelihoods, priors
from pyrobnn.bayesianize import bayesianize
from pyrobnn.guides import Guide, MeanField
from pyrobnn.initialization import initial_values
from pyrobnn.supervised import SupervisedModel


class Sites(PyroModule):
    """A model that is a dictionary of priors."""

    def __init__(self, **priors: dist.Distribution) -> None:
        super().__init__()
        self.priors = priors

    def forward(self) -> dict[str, Tensor]:
        return {name: pyro.sample(name, prior) for name, prior in self.priors.items()}


def supervised(net: nn.Module | None = None, prior: object = None, **options: object) -> SupervisedModel:
    noise = likelihoods.Normal(dist.LogNormal(0.0, 0.5))
    prior = dist.Normal(0.0, 1.0) if prior is None else prior
    return SupervisedModel(net or nn.Linear(3, 2), noise, prior, num_data=8)


# --------------------------------------------------------------------------------------- the model's sites


def test_sites_are_described() -> None:
    sites = Guide(supervised()).sites
    assert list(sites) == ["net.weight", "net.bias", "likelihood.scale"]
    weight, bias, scale = sites.values()
    assert (weight.shape, weight.event_dim, weight.numel) == ((2, 3), 2, 6)
    assert (bias.shape, bias.event_dim, bias.numel) == ((2,), 1, 2)
    assert (scale.shape, scale.event_dim, scale.numel) == ((), 0, 1)
    assert weight.is_static and weight.is_real and weight.is_flat_normal
    assert scale.is_static and not scale.is_real and not scale.is_flat_normal


def test_flat_order_puts_fixed_normals_first_and_covers_every_element_once() -> None:
    guide = Guide(Sites(a=dist.Gamma(2.0, 1.0), b=dist.Normal(0.0, 1.0), c=dist.Dirichlet(torch.ones(4))), example=())
    assert list(guide.layout) == ["a", "b", "c"]
    assert [site.name for site in guide.flat_order] == ["b", "a", "c"]
    assert [site.offset for site in guide.flat_order] == [0, 1, 2]
    assert guide.layout.size == 1 + 1 + 3  # a simplex of 4 has 3 unconstrained values
    assert guide.layout["c"].shape == (4,) and guide.layout["c"].unconstrained_shape == (3,)


def test_priors_that_vary_between_runs_are_not_static() -> None:
    latent = Guide(supervised(prior=priors.latent_scale())).sites["net.weight"]
    learned = Guide(supervised(prior=priors.learned_scale())).sites["net.weight"]
    assert not latent.is_static and not learned.is_static


def test_plates_are_kept() -> None:
    def model() -> None:
        with pyro.plate("groups", 3):
            pyro.sample("effect", dist.Normal(0.0, 1.0))

    guide = MeanField(model, example=())
    site = guide.layout["effect"]
    assert site.plates == (("groups", 3, -1),) and site.shape == (3,) and site.event_dim == 0
    assert not site.is_flat_normal
    assert guide.log_prob(guide.sample(5)).shape == (5,)


def test_building_leaves_random_state_buffers_and_network_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    original = {name: value.clone() for name, value in net.state_dict().items()}
    model = supervised(net)
    random_state = torch.get_rng_state()
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    torch.set_rng_state(random_state)
    Guide(model)
    Guide(model, example=(x, y))
    assert torch.equal(torch.get_rng_state(), random_state)
    for state in (net.state_dict(), model.net.network.state_dict()):
        for name, value in state.items():
            assert torch.equal(value, original[name]), name


def test_a_model_that_is_no_model() -> None:
    with pytest.raises(TypeError, match="model: expected a Pyro model"):
        Guide(3)  # type: ignore[arg-type]


def test_a_model_known_only_with_data_needs_an_example() -> None:
    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = bayesianize(nn.Linear(3, 1), dist.Normal(0.0, 1.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    with pytest.raises(TypeError, match=r"example: the latent sites of Regression.*example=\(x, y\)"):
        Guide(Regression())
    assert list(Guide(Regression(), example=(torch.randn(2, 3),)).sites) == ["net.weight", "net.bias"]


def test_a_model_without_latent_sites() -> None:
    with pytest.raises(ValueError, match="no latent sites"):
        Guide(Sites(), example=())


def test_a_discrete_site() -> None:
    with pytest.raises(ValueError, match=r"site 'z'.*Bernoulli is discrete"):
        Guide(Sites(w=dist.Normal(0.0, 1.0), z=dist.Bernoulli(0.5)), example=())


def test_a_site_that_comes_and_goes() -> None:
    runs = iter(range(10))

    def model() -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))
        if next(runs) % 2 == 0:
            pyro.sample("now_and_then", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'now_and_then'.*must be fixed"):
        Guide(model, example=())


@pytest.mark.parametrize("plate", [{"size": 10, "subsample_size": 4}, {"size": 3}])
def test_a_latent_site_in_a_subsampled_or_sequential_plate(plate: dict[str, int]) -> None:
    def model() -> None:
        if "subsample_size" in plate:
            with pyro.plate("data", **plate):
                pyro.sample("z0", dist.Normal(0.0, 1.0))
        else:
            for index in pyro.plate("data", **plate):
                pyro.sample(f"z{index}", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'z0'.*plate 'data'"):
        Guide(model, example=())


# ----------------------------------------------------------------------------------------- starting values


def start(model: object, init: object, **options: object) -> dict[str, Tensor]:
    """Starting values of a guide, constrained."""
    guide = MeanField(model, init, **options)  # type: ignore[arg-type]
    return guide.layout.constrain(guide.layout.split(guide.flat_loc.detach()))


def test_default_start_is_the_converted_network() -> None:
    net = nn.Linear(3, 2)
    values = start(supervised(net), None)
    assert torch.equal(values["net.weight"], net.weight) and torch.equal(values["net.bias"], net.bias)
    torch.testing.assert_close(values["likelihood.scale"], dist.LogNormal(0.0, 0.5).mean)


def test_start_at_another_network() -> None:
    other = nn.Linear(3, 2)
    values = start(supervised(), other)
    assert torch.equal(values["net.weight"], other.weight) and torch.equal(values["net.bias"], other.bias)


def test_start_of_a_horseshoe_reproduces_the_weights() -> None:
    net = nn.Linear(3, 2)
    values = start(supervised(net, priors.horseshoe()), None)
    parts = [values[f"net.weight.{part}"] for part in ("raw", "local_scale", "global_scale")]
    torch.testing.assert_close(parts[0] * parts[1] * parts[2], net.weight.detach())


def test_start_at_the_prior() -> None:
    model = supervised(prior=dist.Normal(3.0, 0.1))
    assert torch.equal(start(model, "prior_mean")["net.weight"], torch.full((2, 3), 3.0))
    first, second = (start(model, "prior")["net.weight"] for _ in range(2))
    assert not torch.equal(first, second)
    assert bool(((first - 3.0).abs() < 0.6).all())  # six prior standard deviations


def test_start_at_given_values() -> None:
    values = start(supervised(), {"net.bias": torch.tensor([1.0, 2.0]), "likelihood.scale": torch.tensor(0.3)})
    assert values["net.bias"].tolist() == [1.0, 2.0]
    torch.testing.assert_close(values["likelihood.scale"], torch.tensor(0.3))
    values = start(supervised(), lambda name, prior: torch.full(prior.shape(), float(len(name))))
    assert values["net.bias"].tolist() == [8.0, 8.0]


def test_a_prior_without_mean_starts_at_its_median() -> None:
    """Of 101 draws (the median is 1, the density 1/π there): standard error π / (2 √101) = 0.16."""
    value = start(Sites(s=dist.HalfCauchy(1.0)), None, example=())["s"]
    assert abs(float(value) - 1.0) < 4 * 0.16


def test_weights_outside_a_constrained_prior_start_at_its_centre() -> None:
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(-1.0)
        net.bias.fill_(0.5)
    values = start(supervised(net, dist.Gamma(2.0, 1.0)), None)
    torch.testing.assert_close(values["net.weight"], torch.full((1, 1), 2.0))
    torch.testing.assert_close(values["net.bias"], torch.full((1,), 0.5))


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ("prio", TypeError, "init: expected a network"),
        (3, TypeError, "init: expected a network"),
        ({"net.weigth": torch.zeros(2, 3)}, ValueError, "no latent site 'net.weigth'.*net.weight"),
        (
            {"net.weight": torch.zeros(3, 2)},
            ValueError,
            r"'net.weight' has shape \(3, 2\), expected \(2, 3\)",
        ),
        (
            {"likelihood.scale": torch.tensor(-1.0)},
            ValueError,
            "'likelihood.scale' lies outside its prior's support",
        ),
        (nn.Linear(3, 5), ValueError, r"'net.weight' has shape \(5, 3\), expected \(2, 3\)"),
        (nn.Linear(3, 2, bias=False), ValueError, "the network has no parameter 'bias'"),
    ],
)
def test_bad_starting_values(init: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        start(supervised(), init)


def test_start_at_a_network_needs_one_converted_network() -> None:
    class Two(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = bayesianize(nn.Linear(1, 1), dist.Normal(0.0, 1.0))
            self.b = bayesianize(nn.Linear(1, 1), dist.Normal(0.0, 1.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    with pytest.raises(ValueError, match="holds 2 converted networks"):
        MeanField(Two(), nn.Linear(1, 1), example=(torch.ones(1, 1),))


def test_initial_values_are_unconstrained() -> None:
    model = Sites(s=dist.LogNormal(0.0, 1.0))
    guide = Guide(model, example=())
    values = initial_values(model, guide.layout, {"s": torch.tensor(2.0)})
    torch.testing.assert_close(values["s"], torch.tensor(2.0).log())


# ----------------------------------------------------------------------------------------- the flat vector


@given(
    shapes=st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=4),
    normal=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_join_undoes_split(shapes: list[list[int]], normal: list[bool]) -> None:
    families = {
        f"site{index}": (dist.Normal(0.0, 1.0) if is_normal else dist.Laplace(0.0, 1.0)).expand(shape).to_event()
        for index, (shape, is_normal) in enumerate(zip(shapes, normal, strict=False))
    }
    guide = Guide(Sites(**families), example=())
    flat = torch.arange(float(guide.layout.size))
    pieces = guide.layout.split(flat)
    assert {name: list(piece.shape) for name, piece in pieces.items()} == {
        f"site{index}": shape for index, shape in enumerate(shapes)
    }
    assert torch.equal(guide.layout.join(pieces), flat)
    batched = guide.layout.split(flat.expand(2, 5, -1))
    assert all(batched[name].shape == (2, 5, *piece.shape) for name, piece in pieces.items())


def test_what_a_family_must_implement() -> None:
    guide = Guide(supervised())
    site = guide.layout["net.weight"]
    for act in (guide.rsample, lambda: guide.marginal(site.name), lambda: guide.sample(1), lambda: guide()):
        with pytest.raises(NotImplementedError):
            act()
