"""Normal priors on flat vectors against ``torch.distributions`` and autograd, in double precision."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.layout import Layout
from pyrobnn.steps.normal_prior import FlatNormalPrior, is_fixed_normal
from tests.guides.test_base import Sites

LIKE = torch.zeros(1, dtype=torch.float64)


def normals(*parameters: tuple[float | Tensor, float | Tensor], shape: tuple[int, ...] = (2, 3)) -> Layout:
    """Normal sites of one shape and the given means and scales."""
    families = {
        f"w{index}": dist.Normal(*(torch.as_tensor(p, dtype=torch.float64) for p in pair)).expand(shape).to_event()
        for index, pair in enumerate(parameters)
    }
    return Layout.of(Sites(**families), example=())


def terms(layout: Layout) -> dict[str, PriorTerm]:
    """The sites' own priors."""
    return {name: PriorTerm(site.prior) for name, site in layout.items()}


def log_prior(layout: Layout, flat: Tensor) -> Tensor:
    """The sum of the sites' log densities."""
    return sum(
        (layout[name].prior.log_prob(value) for name, value in layout.split(flat).items()),
        start=LIKE.sum(),
    )


VECTOR = torch.linspace(0.5, 2.0, 6, dtype=torch.float64).view(2, 3)
PRIORS = {
    "one number": [(0.0, 1.0), (0.0, 1.0)],
    "one mean away from zero": [(0.7, 0.3)],
    "scales by site": [(0.0, 0.5), (0.0, 2.0)],
    "means by site": [(1.0, 0.5), (-1.0, 0.5)],
    "by element": [(VECTOR, VECTOR), (0.0, 1.0)],
}


@pytest.mark.parametrize("parameters", PRIORS.values(), ids=PRIORS.keys())
def test_flat_prior_is_the_sum_of_the_sites_priors(parameters: list) -> None:
    layout = normals(*parameters)
    prior = FlatNormalPrior(layout, terms(layout), LIKE)
    flat = torch.randn(layout.size, dtype=torch.float64, requires_grad=True)
    assert prior.gaps == []
    (window,) = prior.windows
    assert (window.window, window.size) == (slice(0, layout.size), layout.size)
    log_density = log_prior(layout, flat)
    torch.testing.assert_close(window.half_squares(flat) + window.log_normalizer, -log_density)
    expected = torch.autograd.grad(-log_density, flat)[0]
    gradient = torch.ones_like(flat)
    window.add_gradient(gradient, flat.detach(), 0.25)
    torch.testing.assert_close(gradient, 1.0 + 0.25 * expected)


@given(
    locs=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    scale=st.floats(0.1, 10.0),
    shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
)
def test_flat_prior_for_any_shapes(locs: list[float], scale: float, shape: tuple[int, ...]) -> None:
    layout = normals(*((loc, scale) for loc in locs), shape=shape)
    (window,) = FlatNormalPrior(layout, terms(layout), LIKE).windows
    flat = torch.linspace(-2.0, 2.0, layout.size, dtype=torch.float64)
    torch.testing.assert_close(window.half_squares(flat) + window.log_normalizer, -log_prior(layout, flat))


def test_windows_and_gaps_alternate_in_the_models_order() -> None:
    families = {
        "a": dist.Laplace(0.0, 1.0),
        "b": dist.Normal(0.0, 2.0),
        "c": dist.Normal(1.0, 2.0).expand([3]).to_event(1),
        "d": dist.Gamma(1.0, 1.0),
        "e": dist.Normal(0.0, 1.0),
    }
    layout = Layout.of(Sites(**families), example=())
    prior = FlatNormalPrior(layout, terms(layout), LIKE)
    assert prior.names == {"b", "c", "e"}
    assert [window.window for window in prior.windows] == [slice(1, 5), slice(6, 7)]
    assert prior.gaps == [slice(0, 1), slice(5, 6)]
    none = FlatNormalPrior(layout.select(["a"]), {"a": PriorTerm(families["a"])}, LIKE)
    assert (none.windows, none.names, none.gaps) == ([], frozenset(), [slice(0, 1)])
    partly = FlatNormalPrior(layout, {"b": PriorTerm(families["b"])}, LIKE)  # what was not sampled is not counted
    assert partly.names == {"b"}


def test_what_is_a_fixed_normal() -> None:
    def model() -> None:
        with pyro.plate("groups", 3):
            pyro.sample("plated", dist.Normal(0.0, 1.0))

    (plated,) = Layout.of(model, example=()).values()
    assert not is_fixed_normal(plated, PriorTerm(plated.prior))
    (site,) = normals((0.0, 1.0)).values()
    assert is_fixed_normal(site, PriorTerm(site.prior))
    assert not is_fixed_normal(site, PriorTerm(site.prior, scale=2.0))
    assert not is_fixed_normal(site, PriorTerm(site.prior, mask=torch.tensor(True)))
    assert not is_fixed_normal(site, PriorTerm(dist.Laplace(0.0, 1.0)))
    trained = dist.Normal(torch.zeros(2, 3, requires_grad=True), 1.0).to_event(2)
    assert not is_fixed_normal(site, PriorTerm(trained))


def test_matches_knows_the_very_priors() -> None:
    layout = normals((0.0, 1.0), (0.0, 2.0))
    used = terms(layout)
    prior = FlatNormalPrior(layout, used, LIKE)
    assert prior.matches(used, LIKE)
    assert not prior.matches({"w0": used["w0"]}, LIKE)
    assert not prior.matches({**used, "w1": PriorTerm(dist.Normal(0.0, 2.0).expand([2, 3]).to_event())}, LIKE)
    assert not prior.matches({**used, "w1": used["w1"]._replace(scale=2.0)}, LIKE)
    assert not prior.matches(used, LIKE.float())


def test_large_sites_have_windows_of_their_own() -> None:
    """Their priors stay numbers where neighbors differ; small sites share a vector."""
    families = {
        "a": dist.Normal(0.0, 0.1).expand([200, 100]).to_event(2),
        "b": dist.Normal(0.0, 0.1).expand([100]).to_event(1),
        "c": dist.Normal(0.0, 1.0).expand([5]).to_event(1),
        "d": dist.Normal(0.0, 2.0).expand([5]).to_event(1),
        "e": dist.Normal(1.0, 0.2).expand([100, 200]).to_event(2),
        "f": dist.Normal(0.0, 1.0).expand([5]).to_event(1),
    }
    layout = Layout.of(Sites(**families), example=())
    flat = torch.randn(layout.size, dtype=torch.float64, requires_grad=True)
    windows = FlatNormalPrior(layout, terms(layout), flat).windows
    assert [w.window for w in windows] == [
        slice(0, 20100),
        slice(20100, 20110),
        slice(20110, 40110),
        slice(40110, 40115),
    ]
    assert [isinstance(w.precision, float) for w in windows] == [True, False, True, True]
    total = sum(w.half_squares(flat[w.window]) + w.log_normalizer for w in windows)
    torch.testing.assert_close(total, -log_prior(layout, flat))
