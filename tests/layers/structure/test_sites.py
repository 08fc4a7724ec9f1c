"""Declared structure: its sites, their priors beside those of weights, and the rules that reach them."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyrobnn as pb
from pyrobnn import priors
from pyrobnn.distributions.concrete import BinaryConcrete, Concrete
from pyrobnn.guides import MAP, DeltaMixture, LowRankNormal, MCDropout, MeanField
from pyrobnn.model.priors import BinaryConcretePrior, ConcretePrior, from_spec
from pyrobnn.structure import Choice, Edges, Gates
from tests.layers.structure.networks import SITES, CellNetwork, cell_model, images


def priors_of(prior: Any, **options: Any) -> dict[str, Any]:
    net = pb.bayesianize(CellNetwork(**options), prior)
    return net.site_priors


def test_every_declaration_is_one_site_beside_the_weights() -> None:
    model = cell_model(temperature=0.7)
    found = MAP(model).layout
    assert [name for name in found if "structure" in name] == SITES
    assert [tuple(found[name].shape) for name in SITES] == [(3, 3), (4,), (1,), (1, 4)]
    weights = [name for name in found if "structure" not in name]
    assert weights == [f"net.{name}" for name, _ in CellNetwork().named_parameters() if "structure" not in name]
    for name in SITES:
        base: Any = found[name].prior
        while isinstance(base, dist.Independent):
            base = base.base_dist
        assert isinstance(base, BinaryConcrete if "gates" in name else Concrete)
        assert float(base.temperature) == pytest.approx(0.7)


def test_rules_for_weights_pass_structure_by() -> None:
    lecun = priors_of([("first.*", priors.lecun()), ("*", dist.Normal(0.0, 2.0))])
    assert isinstance(lecun["edges.structure"], ConcretePrior)
    assert isinstance(lecun["gate.gates.structure"], BinaryConcretePrior)
    everything = priors_of([("e*", dist.Normal(0.0, 1.0)), ("*", dist.Normal(0.0, 2.0))])
    assert isinstance(everything["edges.structure"], ConcretePrior)
    fixed = priors_of([("*structure*", None), ("*", dist.Normal(0.0, 1.0))])
    assert not [name for name in fixed if "structure" in name]
    deterministic = priors_of([("*", None)])
    assert sorted(deterministic) == sorted(name.removeprefix("net.") for name in SITES)
    colder = ConcretePrior(torch.Size((3, 3)), 0.3)
    replaced = priors_of([("edges.*", lambda *_: colder), ("*", dist.Normal(0.0, 1.0))])
    assert replaced["edges.structure"] is colder


def test_fixed_structure_neither_trains_nor_varies() -> None:
    model = cell_model([("*structure*", None), ("*", dist.Normal(0.0, 1.0))])
    guide, (x, y) = MAP(model), images()
    pb.fit(model, guide, [(x, y)], epochs=2, progress=False)
    expected = torch.full((3, 3), 1.0 / 3.0)
    assert torch.equal(model.net.network.edges.structure, expected)  # type: ignore[union-attr]


def test_prior_logits_and_moves() -> None:
    odds = torch.tensor([0.0, math.log(2.0), math.log(5.0)])
    edges = Edges(["a", "b"], ["x", "y", "z"], temperature=0.5, logits=odds)
    prior = edges.own_prior("structure")
    torch.testing.assert_close(prior.conditional().base_dist.probs[1], torch.tensor([1.0, 2.0, 5.0]) / 8.0)
    first = prior.conditional()
    assert prior.conditional() is first
    prior.double()
    assert prior.conditional() is not first
    assert prior.conditional().sample().dtype == torch.float64
    assert prior.extra_repr() == "Concrete(0.5, logits)"
    assert Gates(2).own_prior("structure").extra_repr() == "BinaryConcrete(1, uniform)"


@pytest.mark.parametrize("kind", [ConcretePrior, BinaryConcretePrior])
def test_priors_are_rebuilt_from_their_specs(kind: Any) -> None:
    prior = kind(torch.Size((2, 3)), 0.4, torch.tensor([0.0, 1.0, 2.0]))
    other = from_spec(prior.spec())
    other.load_state_dict(prior.state_dict())
    value = prior.conditional().sample()
    assert type(other) is kind
    torch.testing.assert_close(other.conditional().log_prob(value), prior.conditional().log_prob(value))


@pytest.mark.parametrize("family", [MAP, MeanField, LowRankNormal, MCDropout, DeltaMixture])
def test_guides_for_weights_take_structure_for_what_it_is(family: Any) -> None:
    torch.manual_seed(0)
    model, (x, y) = cell_model(), images()
    guide = family(model)
    history = pb.fit(model, guide, [(x, y)], epochs=3, lr=1e-2, progress=False)
    assert len(history.elbo) == 3
    for name, value in guide.sample(5).items():
        if "structure" in name:
            assert bool(((value >= 0) & (value <= 1)).all())
        if name in (SITES[0], SITES[3]):
            torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[:-1]))
    probs = pb.predict(model, guide, x, num_samples=3).mean
    assert bool(probs.isfinite().all())


def test_named_dimensions_in_arviz() -> None:
    model, (x, y) = cell_model(), images(6)
    data = pb.to_arviz(model, MeanField(model), x, y, num_samples=4, sites=["*structure*"])
    posterior = data["posterior"]
    assert posterior["net.edges.structure"].dims == ("chain", "draw", "net.edges.edge", "net.edges.operation")
    assert list(posterior["net.edges.operation"].values) == ["zero", "identity", "conv"]
    picked = posterior["net.edges.structure"].sel({"net.edges.edge": "0->2", "net.edges.operation": "conv"})
    assert picked.shape == (1, 4)
    assert posterior["net.depth.depths.structure"].dims[2:] == ("net.depth.depths.stack", "net.depth.depths.depth")
    assert posterior["net.gate.gates.structure"].dims[2:] == ("net.gate.gates.gate",)


def test_tied_names_of_a_shared_site_are_shortened_in_the_table() -> None:
    description = pb.describe(cell_model())
    row = next(row for row in description.rows if row["site"] == "net.edges.structure")
    assert len(row["tied"]) == 6
    assert "and 3 more" in str(description)
    assert "Concrete(1, uniform)" in str(description)


def test_resetting_forgets_a_structure() -> None:
    edges = Edges(["a"], ["x", "y"])
    with torch.no_grad():
        edges.structure.copy_(torch.tensor([[0.9, 0.1]]))
    edges.reset_parameters()
    assert torch.equal(edges.structure, torch.full((1, 2), 0.5))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(2, 5))
def test_shapes(num_edges: int, num_operations: int) -> None:
    edges = Edges([str(i) for i in range(num_edges)], [f"o{k}" for k in range(num_operations)])
    assert edges.structure.shape == (num_edges, num_operations)
    torch.testing.assert_close(edges.structure.sum(-1), torch.ones(num_edges))
    assert edges.own_prior("structure").conditional().sample().shape == (num_edges, num_operations)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Edges(["a", "a"], ["x", "y"]), "names: expected at least 1 different names"),
        (lambda: Edges([], ["x", "y"]), "names: expected at least 1 different names"),
        (lambda: Edges(["a"], ["x"]), "operations: expected at least 2 different names"),
        (lambda: Edges("ab", "xy"), "names: expected a list of names or pairs, got 'ab'"),
        (lambda: Edges(["a"], "xy"), "operations: expected a list of names, got 'xy'"),
        (lambda: Edges(["a"], ["x", "y"], temperature=0.0), "temperature: expected a positive temperature"),
        (lambda: Edges(["a"], ["x", "y"], temperature=-1.0), "temperature: expected a positive temperature"),
        (lambda: Edges(["a"], ["x", "y"], logits=torch.zeros(3)), r"logits: their shape \(3,\) does not broadcast"),
        (lambda: Gates(0), "names: expected a positive int, got 0"),
        (lambda: Gates(2, temperature=0.0), "temperature: expected a positive temperature"),
        (lambda: Choice([nn.Identity(), nn.Tanh()], temperature=0.0), "temperature: expected a positive temperature"),
        (lambda: Edges(["a"], ["x", "y"]).index("b"), "edge: there is no edge 'b'; there are a"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
