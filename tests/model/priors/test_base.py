"""A fixed prior is the distribution it was made from, after every move, cast, save and load."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyrobnn.model.priors import FixedPrior, from_spec, scale_mixture
from pyrobnn.model.priors.base import elementwise_support, is_real

SHAPE = torch.Size([2, 3])
MATRIX = torch.linspace(0.5, 2.0, 6).reshape(2, 3)

FAMILIES = {
    "normal": lambda: dist.Normal(0.3, 1.7),
    "normal of full shape": lambda: dist.Normal(-MATRIX, MATRIX),
    "normal by row": lambda: dist.Normal(torch.zeros(3), torch.tensor([0.5, 1.0, 2.0])),
    "normal as one event": lambda: dist.Normal(torch.zeros(2, 3), MATRIX).to_event(2),
    "laplace": lambda: dist.Laplace(0.0, 0.4),
    "student t": lambda: dist.StudentT(4.0, 0.1, 2.0),
    "cauchy": lambda: dist.Cauchy(0.0, 0.5),
    "uniform": lambda: dist.Uniform(-3.0, 5.0),
    "log-normal": lambda: dist.LogNormal(0.2, 0.3),
    "half-cauchy": lambda: dist.HalfCauchy(2.0),
    "half-normal": lambda: dist.HalfNormal(2.0),
    "gamma": lambda: dist.Gamma(2.0, 3.0),
    "inverse gamma": lambda: dist.InverseGamma(2.0, 3.0),
    "beta": lambda: dist.Beta(2.0, 3.0),
    "scale mixture": lambda: scale_mixture(0.25, 1.0, 0.1),
    "mixture of student t": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.2, 0.8])),
        dist.StudentT(torch.tensor([3.0, 9.0]), 0.0, torch.tensor([1.0, 2.0])),
    ),
    "dirichlet": lambda: dist.Dirichlet(MATRIX),
    "multivariate normal": lambda: dist.MultivariateNormal(-MATRIX, torch.eye(3) + 0.3),
    "multivariate normal, expanded": lambda: dist.MultivariateNormal(torch.ones(3), torch.eye(3) + 0.3).expand([2]),
    "low-rank normal": lambda: dist.LowRankMultivariateNormal(torch.zeros(2, 3), MATRIX.unsqueeze(-1), MATRIX),
}


def log_density(distribution: dist.Distribution, value: Tensor) -> Tensor:
    """The sum of the distribution's log density over all elements of ``value``, without any of our code."""
    while isinstance(distribution, dist.Independent):
        distribution = distribution.base_dist
    rank = len(distribution.event_shape)
    return distribution.expand(value.shape[: value.dim() - rank]).log_prob(value).sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_given_distribution_with_the_whole_parameter_as_the_event(family: str) -> None:
    given_distribution = FAMILIES[family]()
    prior = FixedPrior(given_distribution, SHAPE)
    assert prior.distribution.event_shape == SHAPE
    assert prior.distribution.batch_shape == ()
    value = prior.distribution.sample()
    assert value.shape == SHAPE
    torch.testing.assert_close(prior.distribution.log_prob(value), log_density(given_distribution, value))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_spec_passes_through_json_and_the_state_dict_fills_it(family: str) -> None:
    prior = FixedPrior(FAMILIES[family](), SHAPE)
    rebuilt = from_spec(json.loads(json.dumps(prior.spec())))
    rebuilt.load_state_dict(prior.state_dict())
    value = prior.distribution.sample()
    assert torch.equal(rebuilt.distribution.log_prob(value), prior.distribution.log_prob(value))
    assert type(rebuilt.distribution) is type(prior.distribution)
    assert rebuilt.extra_repr() == prior.extra_repr()


@pytest.mark.parametrize("family", FAMILIES)
def test_double_deepcopy_and_pickle_keep_the_density(family: str) -> None:
    prior = FixedPrior(FAMILIES[family](), SHAPE)
    value = prior.distribution.sample()
    expected = prior.distribution.log_prob(value)
    for twin in (copy.deepcopy(prior), pickle.loads(pickle.dumps(prior))):
        assert torch.equal(twin.distribution.log_prob(value), expected)
        assert twin.distribution is not prior.distribution
    wide = prior.double().distribution
    assert wide.sample().dtype == torch.float64
    torch.testing.assert_close(wide.log_prob(value.double()), expected.double(), rtol=1e-5, atol=1e-5)


def test_moving_takes_the_distribution_along() -> None:
    with pyro.validation_enabled(False):  # a tensor without data cannot be validated
        prior = FixedPrior(scale_mixture(), SHAPE).to("meta")
        assert prior.distribution.log_prob(torch.zeros(SHAPE, device="meta")).device.type == "meta"


def test_the_same_object_comes_back_until_a_buffer_is_replaced() -> None:
    prior = FixedPrior(dist.Normal(0.0, 1.0), SHAPE)
    first = prior.distribution
    assert prior.distribution is first
    assert prior.float().distribution is first, "a cast that changes nothing replaces nothing"
    assert prior.double().distribution is not first
    second = prior.distribution
    prior.load_state_dict({"loc": torch.tensor(3.0), "scale": torch.tensor(2.0)})
    assert prior.distribution is not second
    assert prior.distribution.mean.eq(3.0).all()
    assert prior.distribution.variance.eq(4.0).all()


def test_loading_reaches_distributions_that_derive_tensors_from_their_parameters() -> None:
    narrow, wide = (
        FixedPrior(scale_mixture(0.1, 1.0, 0.01), SHAPE),
        FixedPrior(scale_mixture(0.9, 3.0, 0.1), SHAPE),
    )
    container = torch.nn.ModuleList([narrow])
    container.load_state_dict(torch.nn.ModuleList([wide]).state_dict())
    assert torch.equal(narrow.distribution.log_prob(MATRIX), wide.distribution.log_prob(MATRIX))


def test_the_tensors_are_its_own() -> None:
    loc = torch.zeros(2, 3)
    prior = FixedPrior(dist.Normal(loc, 1.0), SHAPE)
    loc.fill_(7.0)
    assert prior.distribution.mean.eq(0.0).all()


def test_a_constant_is_stored_as_one_number() -> None:
    prior = FixedPrior(dist.Normal(0.0, 2.0).expand([2, 3]).to_event(2), SHAPE)
    assert {name: buffer.shape for name, buffer in prior.named_buffers()} == {"loc": (), "scale": ()}


def test_a_prior_asks_for_no_gradient() -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    prior = FixedPrior(dist.Normal(0.0, scale), SHAPE)
    assert not any(buffer.requires_grad for buffer in prior.buffers())
    assert list(prior.parameters()) == []


def test_a_multivariate_prior_of_one_element() -> None:
    prior = FixedPrior(dist.MultivariateNormal(torch.zeros(1), 4.0 * torch.eye(1)), torch.Size([1]))
    expected = -0.5 * math.log(2 * math.pi * 4.0)
    assert prior.distribution.log_prob(torch.zeros(1)).item() == pytest.approx(expected)


@given(
    shape=st.lists(st.integers(1, 4), max_size=4).map(torch.Size),
    loc=st.floats(-3, 3),
    scale=st.floats(0.1, 10),
    drop=st.integers(0, 4),
)
def test_any_broadcastable_shape_of_normal_sums_its_elements(
    shape: torch.Size, loc: float, scale: float, drop: int
) -> None:
    given_distribution = dist.Normal(torch.full(shape[drop:], loc), scale)
    prior = FixedPrior(given_distribution, shape)
    value = torch.linspace(-1, 1, shape.numel()).reshape(shape)
    expected = (-0.5 * ((value - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)).sum()
    torch.testing.assert_close(prior.distribution.log_prob(value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("distribution", "shape"),
    [
        (dist.Normal(torch.zeros(2), 1.0), (2, 3)),
        (dist.Normal(torch.zeros(3, 2), 1.0), (2, 3)),
        (dist.Normal(torch.zeros(4, 2, 3), 1.0), (2, 3)),
        (dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), (2, 3)),
        (dist.Normal(torch.zeros(3), 1.0), ()),
    ],
)
def test_a_wrong_shape_names_the_parameter_and_both_shapes(
    distribution: dist.Distribution, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"prior of 'fc\.weight': its shape \(.*\) does not broadcast") as caught:
        FixedPrior(distribution, torch.Size(shape), "fc.weight")
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("distribution", [dist.Bernoulli(0.5), dist.Poisson(1.0), dist.Categorical(torch.ones(3))])
def test_a_discrete_prior_is_refused(distribution: dist.Distribution) -> None:
    with pytest.raises(ValueError, match=r"prior of 'w': .*discrete.*Normal"):
        FixedPrior(distribution, torch.Size([2]), "w")


@pytest.mark.parametrize("wrong", [1.0, "normal", torch.distributions.Normal(0.0, 1.0), dist.Normal])
def test_something_else_than_a_pyro_distribution_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"prior of 'w': expected a Pyro distribution"):
        FixedPrior(wrong, torch.Size([2]), "w")  # type: ignore[arg-type]


class Exotic(dist.Normal):
    """A user's own family, which no specification could name."""


@pytest.mark.parametrize(
    "distribution",
    [
        Exotic(0.0, 1.0),
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.ExpTransform()]),
        dist.Normal(0.0, 1.0).mask(False),
    ],
    ids=["own family", "transformed", "masked"],
)
def test_a_distribution_that_cannot_be_taken_apart_is_refused(distribution: dist.Distribution) -> None:
    with pytest.raises(TypeError, match=r"prior of 'w': .* cannot be decomposed"):
        FixedPrior(distribution, torch.Size([2]), "w")


def test_a_newer_kind_of_prior_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown prior 'SpikeAndSlab'.*newer"):
        from_spec({"prior": "SpikeAndSlab", "shape": [2]})


@pytest.mark.parametrize(
    ("family", "real"),
    [
        ("normal", True),
        ("scale mixture", True),
        ("normal as one event", True),
        ("log-normal", False),
        ("uniform", False),
    ],
)
def test_support_of_one_element(family: str, real: bool) -> None:
    distribution = FixedPrior(FAMILIES[family](), SHAPE).distribution
    assert is_real(distribution) is real
    assert elementwise_support(distribution).event_dim == 0
