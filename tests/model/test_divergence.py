"""Divergences: sums over sites, masks and scales of priors, addition, and the joint part of coupled families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, SWAG, Composite, DeltaMixture, Guide, LowRankNormal, MCDropout, MeanField
from pyrobnn.model.divergence import Divergence, PriorTerm, kl_or_difference, prior_terms
from pyrobnn.model.supervised import SupervisedModel


def make_model() -> SupervisedModel:
    """Normal, Laplace and log-normal priors; double precision."""
    rules = [("*bias", dist.Laplace(0.1, 0.8)), ("*", dist.Normal(0.2, 0.7))]
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return SupervisedModel(net, likelihoods.Normal(dist.LogNormal(0.0, 0.5)), rules, num_data=12).double()


def swag(model: Any) -> SWAG:
    """Of three iterates."""
    guide = SWAG(model, rank=2).double()
    for _ in range(3):
        with torch.no_grad():
            guide.flat_loc.add_(0.1 * torch.randn_like(guide.flat_loc))
        guide.collect()
    return guide


FAMILIES: dict[str, Callable[[Any], Guide]] = {
    "MAP": MAP,
    "MeanField": MeanField,
    "LowRankNormal": lambda model: LowRankNormal(model, rank=2),
    "SWAG": swag,
    "DeltaMixture": lambda model: DeltaMixture(model, 3, "prior"),
    "MCDropout": MCDropout,
    "Composite": lambda model: Composite(
        model, [("net.2.*", lambda m, sites: LowRankNormal(m, rank=2, sites=sites)), ("*", MeanField)]
    ),
}

each_family = pytest.mark.parametrize("family", FAMILIES)


def priors_of(model: nn.Module, draw: Any, scale: float = 1.0) -> dict[str, PriorTerm]:
    """Priors as a run under a draw applied them."""
    with draw.running(model, update=False) as run, poutine.scale(scale=scale):
        model(torch.ones(2, 3).double(), torch.ones(2, 2).double())
    return prior_terms(run.latent)


@each_family
def test_sites_and_the_joint_part_are_the_total(family: str) -> None:
    model = make_model()
    guide = FAMILIES[family](model).double()
    for step in (None, guide.step(model), guide.step(model, sequential=False)):
        if family == "DeltaMixture" and step is not None and step.vectorized:
            step.vectorized = False
        draw = guide.rsample() if step is None else step.draw(0)
        priors = priors_of(model, draw)
        found = (guide if step is None else step).divergence(draw, priors)
        assert set(found.by_site) == set(guide.layout)
        torch.testing.assert_close(torch.stack(list(found.by_site.values())).sum() + found.joint, found.total)


@pytest.mark.parametrize("family", ["LowRankNormal", "SWAG"])
def test_the_joint_entropy_is_not_scaled_while_cross_entropies_are(family: str) -> None:
    """``H`` is that of the guide's Gaussian; a scale of three triples every site's term, and nothing else."""
    model = make_model()
    guide = FAMILIES[family](model).double()
    draw = guide.rsample()
    plain, scaled = (guide.divergence(draw, priors_of(model, draw, scale)) for scale in (1.0, 3.0))
    assert isinstance(guide, (LowRankNormal, SWAG))
    torch.testing.assert_close(plain.joint, -guide.joint().entropy())
    torch.testing.assert_close(scaled.joint, plain.joint)
    for name, value in plain.by_site.items():
        torch.testing.assert_close(scaled.by_site[name], 3.0 * value)
    torch.testing.assert_close(scaled.total - plain.total, 2.0 * (plain.total - plain.joint))


@pytest.mark.parametrize("family", ["MAP", "MeanField"])
def test_where_sites_are_independent_all_of_it_is_scaled(family: str) -> None:
    model = make_model()
    guide = FAMILIES[family](model).double()
    for source in (guide, guide.step(model)):
        draw = source.rsample() if isinstance(source, Guide) else source.draw(0)
        plain, scaled = (source.divergence(draw, priors_of(model, draw, scale)) for scale in (1.0, 3.0))
        assert float(torch.as_tensor(plain.joint)) == 0.0
        torch.testing.assert_close(scaled.total, 3.0 * plain.total)


@pytest.mark.parametrize("family", ["LowRankNormal", "SWAG"])
def test_a_coupled_family_refuses_a_missing_site(family: str) -> None:
    model = make_model()
    guide = FAMILIES[family](model).double()
    draw = guide.rsample()
    priors = priors_of(model, draw)
    priors.pop("net.0.bias")
    with pytest.raises(ValueError, match=r"net\.0\.bias"):
        guide.divergence(draw, priors)


def test_an_independent_family_leaves_a_missing_site_out() -> None:
    model = make_model()
    guide = MeanField(model).double()
    draw = guide.rsample()
    priors = priors_of(model, draw)
    whole = guide.divergence(draw, priors)
    dropped = priors.pop("net.0.bias")
    rest = guide.divergence(draw, priors)
    own = guide.divergence(draw, {"net.0.bias": dropped})
    torch.testing.assert_close(rest.total + own.total, whole.total)


# ---------------------------------------------------------------------------------------------------- arithmetic


def test_divergences_add_up() -> None:
    first = Divergence.of_sites({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, torch.tensor(-0.5), True)
    second = Divergence.of_sites({"c": torch.tensor(4.0)}, 0.0, False, "-log prior")
    assert float(first.total) == 2.5
    both = first + second
    assert float(both.total) == 6.5 and float(torch.as_tensor(both.joint)) == -0.5
    assert not both.exact
    assert both.name == "KL and -log prior"
    assert {name: float(value) for name, value in both.by_site.items()} == {"a": 1.0, "b": 2.0, "c": 4.0}
    assert (both + first).name == "KL and -log prior"
    assert (first + first).exact


def test_no_sites_have_no_divergence() -> None:
    assert float(Divergence.of_sites({}, 0.0, True).total) == 0.0


SCORE = torch.tensor([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("scale", "mask", "expected"),
    [
        (1.0, None, 7.0),
        (2.0, None, 14.0),
        (1.0, True, 7.0),
        (1.0, False, 0.0),
        (1.0, torch.tensor([True, False, True]), 5.0),
        (0.5, torch.tensor([True, False, True]), 2.5),
        (torch.tensor([1.0, 10.0, 100.0]), None, 421.0),
        (torch.tensor([1.0, 10.0, 100.0]), torch.tensor([True, True, False]), 21.0),
    ],
)
def test_a_priors_sum_under_mask_and_scale(scale: float | Tensor, mask: Any, expected: float) -> None:
    term = PriorTerm(dist.Normal(0.0, 1.0).expand([3]), scale, mask)
    assert float(term.sum(SCORE)) == expected
    assert term.is_plain == (mask is None and isinstance(scale, float) and scale == 1.0)


def test_an_infinite_score_that_is_masked_counts_nothing() -> None:
    term = PriorTerm(dist.Normal(0.0, 1.0).expand([2]), 1.0, torch.tensor([True, False]))
    assert float(term.sum(torch.tensor([3.0, float("inf")]))) == 3.0


def test_a_closed_form_where_there_is_one() -> None:
    """``KL(N(1, 2) ‖ N(0, 1))`` is ``(4 + 1 - 1)/2 - log 2``; of a Laplace from a Normal there is an estimate."""
    value = torch.tensor(0.7)
    kl, exact = kl_or_difference(dist.Normal(1.0, 2.0), dist.Normal(0.0, 1.0), value)
    assert exact
    torch.testing.assert_close(kl, torch.tensor(2.0) - torch.tensor(2.0).log())
    posterior, prior = dist.Normal(1.0, 2.0), dist.StudentT(3.0)
    estimate, exact = kl_or_difference(posterior, prior, value)
    assert not exact
    torch.testing.assert_close(estimate, posterior.log_prob(value) - prior.log_prob(value))
