"""Flat vectors against ``torch.distributions`` and autograd, in double precision."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyrobnn.guides import Guide
from pyrobnn.guides.flat import FlatNormalPrior, Leaves, accumulate, flat_normal_prior, release
from tests.guides.test_base import Sites

LIKE = torch.zeros(1, dtype=torch.float64)


def normals(*parameters: tuple[float | Tensor, float | Tensor], shape: tuple[int, ...] = (2, 3)) -> Guide:
    """A guide over Normal sites of one shape and the given means and scales."""
    families = {
        f"w{index}": dist.Normal(*(torch.as_tensor(p, dtype=torch.float64) for p in pair)).expand(shape).to_event()
        for index, pair in enumerate(parameters)
    }
    return Guide(Sites(**families), example=())


def log_prior(guide: Guide, flat: Tensor) -> Tensor:
    """The sum of the sites' log densities."""
    return sum(
        (guide.layout[name].prior.log_prob(value) for name, value in guide.layout.split(flat).items()),
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
    guide = normals(*parameters)
    prior = FlatNormalPrior(guide.flat_order, LIKE)
    flat = torch.randn(guide.layout.size, dtype=torch.float64, requires_grad=True)
    assert prior.size == guide.layout.size
    log_density = log_prior(guide, flat)
    torch.testing.assert_close(prior.half_squares(flat) + prior.log_normaliser, -log_density)
    expected = torch.autograd.grad(-log_density, flat)[0]
    gradient = torch.ones_like(flat)
    prior.add_pull(gradient, flat.detach(), 0.25)
    torch.testing.assert_close(gradient, 1.0 + 0.25 * expected)


@given(
    locs=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    scale=st.floats(0.1, 10.0),
    shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
)
def test_flat_prior_for_any_shapes(locs: list[float], scale: float, shape: tuple[int, ...]) -> None:
    guide = normals(*((loc, scale) for loc in locs), shape=shape)
    prior = FlatNormalPrior(guide.flat_order, LIKE)
    flat = torch.linspace(-2.0, 2.0, guide.layout.size, dtype=torch.float64)
    torch.testing.assert_close(prior.half_squares(flat) + prior.log_normaliser, -log_prior(guide, flat))


def test_only_fixed_normals_are_covered() -> None:
    guide = Guide(Sites(a=dist.Laplace(0.0, 1.0), b=dist.Normal(0.0, 2.0), c=dist.Gamma(1.0, 1.0)), example=())
    prior = flat_normal_prior(guide.flat_order, LIKE)
    assert prior is not None and prior.size == 1 and [site.name for site in prior.sites] == ["b"]
    assert flat_normal_prior([guide.layout["a"]], LIKE) is None


def test_matches_knows_the_very_priors() -> None:
    guide = normals((0.0, 1.0), (0.0, 2.0))
    prior = FlatNormalPrior(guide.flat_order, LIKE)
    used = {site.name: site.prior for site in guide.flat_order}
    assert prior.matches(used)
    assert not prior.matches({"w0": used["w0"]})
    assert not prior.matches({**used, "w1": dist.Normal(0.0, 2.0).expand([2, 3]).to_event()})


def test_leaves_view_the_vector_and_collect_its_gradient() -> None:
    guide = Guide(Sites(a=dist.Normal(torch.zeros(2), 1.0).to_event(1), b=dist.Normal(0.0, 1.0)), example=())
    flat = torch.tensor([1.0, 2.0, 3.0])
    leaves = Leaves(flat, guide.flat_order)
    assert all(value.is_leaf and value.requires_grad for value in leaves.values.values())
    with torch.no_grad():
        flat.mul_(2.0)
    assert leaves.values["a"].tolist() == [2.0, 4.0]
    leaves.values["a"].square().sum().backward()
    assert leaves.collect().tolist() == [4.0, 8.0, 0.0]  # b played no part
    leaves.values["b"].backward()
    assert leaves.collect().tolist() == [0.0, 0.0, 1.0]  # nothing is left of the first


def test_a_gradient_in_its_slot_stays_there() -> None:
    guide = Guide(Sites(a=dist.Normal(torch.zeros(2), 1.0).to_event(1), b=dist.Normal(0.0, 1.0)), example=())
    leaves = Leaves(torch.zeros(3), guide.flat_order)
    for expected in ([5.0, 6.0, 7.0], [5.0, 6.0, 0.0]):
        leaves.slots["a"].copy_(torch.tensor([5.0, 6.0]))
        leaves.values["a"].grad = leaves.slots["a"].detach()
        leaves.values["b"].grad = torch.tensor(7.0) if expected[2] else None
        assert leaves.collect().tolist() == expected


def test_gradients_accumulate_through_a_reused_buffer() -> None:
    parameter, buffer = nn.Parameter(torch.zeros(2)), torch.zeros(2)
    for value, total in ((1.0, 1.0), (10.0, 11.0), (100.0, 111.0)):
        release(parameter, buffer)
        buffer.fill_(value)
        accumulate(parameter, buffer)
        assert parameter.grad.tolist() == [total, total]
