"""The latent sites of a model, and their places in the flat vector."""

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
from pyrobnn.guides import MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.layout import Layout
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.steps.normal_prior import is_fixed_normal
from tests.guides.test_base import Sites


def supervised(net: nn.Module | None = None, prior: object = None) -> SupervisedModel:
    noise = likelihoods.Normal(dist.LogNormal(0.0, 0.5))
    prior = dist.Normal(0.0, 1.0) if prior is None else prior
    return SupervisedModel(net or nn.Linear(3, 2), noise, prior, num_data=8)


# --------------------------------------------------------------------------------------- the model's sites


def test_sites_are_described() -> None:
    sites = Layout.of(supervised())
    assert list(sites) == ["net.weight", "net.bias", "likelihood.scale"]
    weight, bias, scale = sites.values()
    assert (weight.shape, weight.event_dim, weight.numel) == ((2, 3), 2, 6)
    assert (bias.shape, bias.event_dim, bias.numel) == ((2,), 1, 2)
    assert (scale.shape, scale.event_dim, scale.numel) == ((), 0, 1)
    assert weight.is_static and weight.is_real and is_fixed_normal(weight, PriorTerm(weight.prior))
    assert scale.is_static and not scale.is_real and not is_fixed_normal(scale, PriorTerm(scale.prior))


def test_the_flat_vector_is_in_the_models_order_and_covers_every_element_once() -> None:
    families = {"a": dist.Gamma(2.0, 1.0), "b": dist.Normal(0.0, 1.0), "c": dist.Dirichlet(torch.ones(4))}
    layout = Layout.of(Sites(**families), example=())
    assert list(layout) == ["a", "b", "c"] and len(layout) == 3
    assert [site.offset for site in layout.values()] == [0, 1, 2]
    assert [site.window for site in layout.values()] == [slice(0, 1), slice(1, 2), slice(2, 5)]
    assert layout.size == 1 + 1 + 3  # a simplex of 4 has 3 unconstrained values
    assert layout["c"].shape == (4,) and layout["c"].unconstrained_shape == (3,)


def test_some_of_the_sites_have_a_flat_vector_of_their_own() -> None:
    model = Sites(a=dist.Gamma(2.0, 1.0), b=dist.Normal(0.0, 1.0), c=dist.Dirichlet(torch.ones(4)))
    layout = Layout.of(model, example=())
    for chosen in (layout.select(["c", "b"]), Layout.of(model, example=(), sites=["c", "b"])):
        assert list(chosen) == ["b", "c"]
        assert [site.offset for site in chosen.values()] == [0, 1] and chosen.size == 4
    assert [site.offset for site in layout.values()] == [0, 1, 2]
    with pytest.raises(ValueError, match="sites: there is no latent site 'd'; the model has a, b, c"):
        layout.select(["a", "d"])
    with pytest.raises(ValueError, match="sites: it names no site"):
        layout.select([])


def test_priors_that_vary_between_runs_are_not_static() -> None:
    latent = Layout.of(supervised(prior=priors.latent_scale()))["net.weight"]
    learned = Layout.of(supervised(prior=priors.learned_scale()))["net.weight"]
    assert not latent.is_static and not learned.is_static


def test_plates_are_kept() -> None:
    def model() -> None:
        with pyro.plate("groups", 3):
            pyro.sample("effect", dist.Normal(0.0, 1.0))

    site = Layout.of(model, example=())["effect"]
    assert site.plates == (("groups", 3, -1),) and site.shape == (3,) and site.event_dim == 0
    assert not is_fixed_normal(site, PriorTerm(site.prior))
    guide = MeanField(model, example=())
    assert guide.log_prob(guide.sample(5)).shape == (5,)


def test_building_leaves_random_state_buffers_and_network_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    original = {name: value.clone() for name, value in net.state_dict().items()}
    model = supervised(net)
    random_state = torch.get_rng_state()
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    torch.set_rng_state(random_state)
    Layout.of(model)
    Layout.of(model, example=(x, y))
    assert torch.equal(torch.get_rng_state(), random_state)
    for state in (net.state_dict(), model.net.network.state_dict()):
        for name, value in state.items():
            assert torch.equal(value, original[name]), name


def test_a_model_that_is_no_model() -> None:
    with pytest.raises(TypeError, match="model: expected a Pyro model"):
        Layout.of(3)  # type: ignore[arg-type]


def test_a_model_known_only_with_data_needs_an_example() -> None:
    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = bayesianize(nn.Linear(3, 1), dist.Normal(0.0, 1.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    with pytest.raises(TypeError, match=r"example: the latent sites of Regression.*example=\(x, y\)"):
        Layout.of(Regression())
    assert list(Layout.of(Regression(), example=(torch.randn(2, 3),))) == ["net.weight", "net.bias"]


def test_a_model_without_latent_sites() -> None:
    with pytest.raises(ValueError, match="no latent sites"):
        Layout.of(Sites(), example=())


def test_a_discrete_site() -> None:
    with pytest.raises(ValueError, match=r"site 'z'.*Bernoulli is discrete"):
        Layout.of(Sites(w=dist.Normal(0.0, 1.0), z=dist.Bernoulli(0.5)), example=())


def test_a_site_that_comes_and_goes() -> None:
    runs = iter(range(10))

    def model() -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))
        if next(runs) % 2 == 0:
            pyro.sample("now_and_then", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'now_and_then'.*must be fixed"):
        Layout.of(model, example=())


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
        Layout.of(model, example=())


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
    layout = Layout.of(Sites(**families), example=())
    flat = torch.arange(float(layout.size))
    pieces = layout.split(flat)
    assert {name: list(piece.shape) for name, piece in pieces.items()} == {
        f"site{index}": shape for index, shape in enumerate(shapes)
    }
    assert torch.equal(layout.join(pieces), flat)
    batched = layout.split(flat.expand(2, 5, -1))
    assert all(batched[name].shape == (2, 5, *piece.shape) for name, piece in pieces.items())


MIXED = {"a": dist.Gamma(2.0, 1.0), "b": dist.Normal(0.0, 1.0), "c": dist.Dirichlet(torch.ones(4).double())}


def test_unconstrain_undoes_constrain() -> None:
    layout = Layout.of(Sites(**MIXED), example=())
    pieces = layout.split(torch.randn(5, layout.size, dtype=torch.float64))
    values = layout.constrain(pieces)
    assert [tuple(value.shape) for value in values.values()] == [(5,), (5,), (5, 4)]
    torch.testing.assert_close(values["a"], pieces["a"].exp())
    assert values["b"] is pieces["b"]
    torch.testing.assert_close(values["c"].sum(-1), torch.ones(5).double())
    assert all(bool(layout[name].prior.support.check(value).all()) for name, value in values.items())
    for name, value in layout.unconstrain(values).items():
        torch.testing.assert_close(value, pieces[name])


def test_log_jacobian_is_that_of_the_transforms() -> None:
    """Of ``exp``: the unconstrained value; of stick breaking: the determinant of autograd's Jacobian, 3 by 3."""
    layout = Layout.of(Sites(**MIXED), example=())
    flat = torch.randn(2, layout.size, dtype=torch.float64)
    pieces = layout.split(flat)
    found = layout.log_jacobian(pieces, layout.constrain(pieces), 1)
    assert found.shape == (2,)
    for row, value in zip(flat, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda u: layout["c"].constrain(u)[:3], row[2:])
        torch.testing.assert_close(value, row[0] + jacobian.det().abs().log())
    single = layout.split(flat[0])
    torch.testing.assert_close(layout.log_jacobian(single, layout.constrain(single)), found[0])
