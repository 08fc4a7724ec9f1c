"""Facts: unions over the parts of a product, and which sites have a density by themselves."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
from torch import nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, Composite, DeltaMixture, LowRankNormal, MeanField
from pyrobnn.model.facts import Facts
from pyrobnn.model.supervised import SupervisedModel

GAUSSIAN = Facts(
    sites=frozenset("ab"),
    density=frozenset("ab"),
    independent=(frozenset("a"), frozenset("b")),
    gaussian=frozenset("a"),
    noise_size=5,
)
COUPLED = Facts(frozenset("cd"), frozenset("cd"), (frozenset("cd"),), noise_size=3)
MEMBERS = Facts(frozenset("ef"), independent=(frozenset("ef"),), num_points=4, num_training_draws=4, num_components=4)
POINT = Facts(frozenset("g"), independent=(frozenset("g"),), num_points=1, predictor="linearized")


def test_sets_are_united_and_noise_adds_up() -> None:
    both = Facts.united([GAUSSIAN, COUPLED])
    assert both.sites == both.density == frozenset("abcd") and both.has_density
    assert both.independent == (frozenset("a"), frozenset("b"), frozenset("cd"))
    assert both.gaussian == frozenset("a")
    assert both.noise_size == 8
    assert both.num_points is both.num_training_draws is both.num_components is None
    assert both.is_ready


def test_a_point_adds_no_noise_and_other_draws_leave_none() -> None:
    assert Facts.united([GAUSSIAN, POINT]).noise_size == 5
    assert Facts.united([POINT, POINT]).noise_size is None
    assert Facts.united([GAUSSIAN, MEMBERS]).noise_size is None


def test_points_multiply_and_only_where_all_are_finite() -> None:
    assert Facts.united([MEMBERS, POINT]).num_points == 4
    assert Facts.united([MEMBERS, Facts(frozenset("h"), num_points=3)]).num_points == 12
    assert Facts.united([MEMBERS, GAUSSIAN]).num_points is None


def test_the_ensemble_among_the_parts_gives_components_and_training_draws() -> None:
    mixed = Facts.united([GAUSSIAN, MEMBERS])
    assert mixed.num_components == mixed.num_training_draws == 4
    assert mixed.density == frozenset("ab") and not mixed.has_density


def test_ready_when_all_parts_are_and_predicted_with_weights_unless_alone() -> None:
    assert not Facts.united([GAUSSIAN, Facts(frozenset("h"), is_ready=False)]).is_ready
    assert Facts.united([POINT]).predictor == "linearized"
    assert Facts.united([POINT, GAUSSIAN]).predictor == "weights"


@pytest.mark.parametrize(
    ("names", "expected"),
    [("a", True), ("ab", True), ("c", False), ("cd", True), ("acd", True), ("ac", False), ("e", False), ("aef", False)],
)
def test_whole_groups_with_a_density_can_be_marginalized(names: str, expected: bool) -> None:
    facts = Facts.united([GAUSSIAN, COUPLED, MEMBERS])
    assert facts.can_marginalize(list(names)) is expected


def test_facts_of_guides() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model = SupervisedModel(net, likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=12)
    size = 3 * 4 + 4 + 4 * 2 + 2
    assert MAP(model).facts.num_components is None and MAP(model).facts.num_points == 1
    assert DeltaMixture(model, 3, members_per_step=2).facts.num_components == 3
    assert DeltaMixture(model, 3, members_per_step=2).facts.num_training_draws == 2
    assert MeanField(model).facts.can_marginalize(["net.0.weight"])
    assert not LowRankNormal(model, rank=2).facts.can_marginalize(["net.0.weight"])
    rules = [("net.2.*", lambda m, sites: LowRankNormal(m, rank=2, sites=sites)), ("*", MeanField)]
    facts = Composite(model, rules).facts
    assert facts.noise_size == size + 2
    assert facts.can_marginalize(["net.2.weight", "net.2.bias", "net.0.bias"])
    assert not facts.can_marginalize(["net.2.weight"])
