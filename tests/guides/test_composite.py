"""Composed guides: the conformance suite, parts against themselves, optimal factorized posteriors, rules."""

from __future__ import annotations

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn import likelihoods, priors
from pyrobnn.guides import MAP, SWAG, Composite, DeltaMixture, LowRankNormal, MeanField
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.prediction import predict
from pyrobnn.reporting.description import describe
from pyrobnn.steps import AutogradStep, Step
from tests.conformance.comparisons import assert_in_place_matches_autograd, assert_same, gradients, seeded
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_models import CASES
from tests.conformance.guide_suite import GuideConformance
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.guides.test_base import Sites


class TestGuideMapConformance(GuideConformance):
    """What every guide must do, with mean field on biases and one Gaussian over the rest."""

    is_joint = True

    def make_guide(self, model: nn.Module, **options: Any) -> Composite:
        return Composite(model, [("*bias*", MeanField), ("*", functools.partial(LowRankNormal, rank=3))], **options)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def supervised(net: nn.Module | None = None, prior: Any = None) -> SupervisedModel:
    noise = likelihoods.Normal(dist.LogNormal(0.0, 0.5))
    return SupervisedModel(net or network(), noise, prior or dist.Normal(0.0, 1.0), num_data=12)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 3), torch.randn(12, 2)


def sites_by_part(guide: Composite) -> list[tuple[str, list[str]]]:
    return [(type(part).__name__, list(part.layout)) for part in guide.parts]


# --------------------------------------------------------------------------- against the families themselves


@pytest.mark.parametrize("family", [MeanField, MAP, functools.partial(LowRankNormal, rank=3)], ids=["mf", "map", "lr"])
def test_one_family_on_everything_is_that_family(family: Any) -> None:
    """Equal losses, gradients (in place and by autograd), draws and divergences, from equal random states."""
    model, data = supervised(), batch()
    torch.manual_seed(0)
    alone = family(model)
    torch.manual_seed(0)
    guide = Composite(model, [("*", family)])
    assert_same(seeded(lambda: guide.sample(3)), seeded(lambda: alone.sample(3)))
    assert_same(seeded(guide.rsample), seeded(alone.rsample))
    if alone.facts.has_density:
        draws = alone.sample(3)
        torch.testing.assert_close(guide.log_prob(draws), alone.log_prob(draws))
    for _ in range(3):  # through an antithetic group
        found, expected = (seeded(lambda g=g: gradients(model, g, data)) for g in (guide, alone))
        own = {name.replace("guide.0.", "guide."): value for name, value in found.items()}
        assert_same(own, expected, rtol=1e-4, atol=1e-4)
    found, expected = (
        float(seeded(lambda g=g: ELBO().differentiable_loss(model, g, *data).detach())) for g in (guide, alone)
    )
    assert found == pytest.approx(expected, rel=1e-6)


THREE = [("net.2*", functools.partial(LowRankNormal, rank=2)), ("net.0*", MeanField), ("*", MAP)]


def test_in_place_gradient_is_the_gradient_with_a_point_among_the_parts() -> None:
    model, (x, y) = supervised().double(), batch()
    assert_in_place_matches_autograd(model, Composite(model, THREE).double(), (x.double(), y.double()))


@pytest.mark.parametrize("objective", [pyro.infer.Trace_ELBO, pyro.infer.TraceMeanField_ELBO])
@pytest.mark.statistical
def test_pyros_objectives_agree_with_ours_with_a_point_among_the_parts(objective: Any) -> None:
    """Mean loss of 150 evaluations each; z-score below 5."""
    model, data = supervised(), batch()
    guide = Composite(model, THREE)
    ours, theirs = (
        torch.tensor([elbo.loss(model, guide, *data) for _ in range(150)]) for elbo in (ELBO(), objective())
    )
    error = (ours.var() + theirs.var()).div(150).sqrt()
    assert abs(float((ours.mean() - theirs.mean()) / error)) < Z


def test_divergence_adds_up_over_parts() -> None:
    model = supervised()
    guide = Composite(model, THREE)
    draws = guide.rsample()
    terms = {name: PriorTerm(site.prior) for name, site in guide.layout.items()}
    own = [
        part.divergence(Draws({name: draws[name] for name in part.layout}), {name: terms[name] for name in part.layout})
        for part in guide.parts
    ]
    for given in (draws, Draws(draws)):  # with the parts' records of it, or without
        found = guide.divergence(given, terms)
        torch.testing.assert_close(found.total, sum(each.total for each in own))
        torch.testing.assert_close(found.joint, own[0].joint)  # of the one part that couples its sites
        assert set(found.by_site) == set(guide.layout)
        for each in own:
            for name, value in each.by_site.items():
                torch.testing.assert_close(found.by_site[name], value)


# -------------------------------------------------------------------------------------------- the posterior


def optimal(data: ConjugateRegression, bias: Any) -> Composite:
    r"""Joint Gaussian weights beside the bias, set to the optimum.

    For ``q(w) q(b)`` it has the posterior's means and the inverses of the precision's diagonal blocks, whatever the
    family of the other part (Bishop 2006, section 10.1.2).
    """
    guide = Composite(
        data.model(), [("weight", functools.partial(LowRankNormal, rank=data.dim)), ("bias", bias)]
    ).double()
    weights, other = guide.parts
    block = torch.linalg.inv(data.precision[: data.dim, : data.dim])
    diagonal = 0.5 * torch.linalg.eigvalsh(block)[0]
    with torch.no_grad():
        weights.flat_loc.copy_(data.mean[:-1])
        weights.flat_log_scale.fill_(0.5 * diagonal.log())
        weights.flat_cov_factor.copy_(torch.linalg.cholesky(block - diagonal * torch.eye(data.dim)))
        other.flat_loc.copy_(data.mean[-1:])
        for scale in other.scale_parameters() if isinstance(other, MeanField) else []:
            scale.fill_(-0.5 * data.precision[-1, -1].log())
    return guide


@pytest.mark.statistical
@pytest.mark.parametrize("bias", [MeanField, MAP])
def test_gradient_vanishes_at_the_optimal_marginals(bias: Any) -> None:
    """400 evaluations; z-scores of all gradients below 5, but not once the parameters are moved."""
    data = ConjugateRegression()
    guide = optimal(data, bias)
    model, elbo = data.model(), ELBO()

    def rows(count: int) -> Tensor:
        found = []
        for _ in range(count):
            guide.zero_grad()
            elbo.loss_and_grads(model, guide, data.x, data.y)
            found.append(torch.cat([p.grad.reshape(-1) for p in guide.parameters()]))
        return torch.stack(found)

    with pyro.validation_enabled(False):
        at_optimum = rows(400)
        assert z_of_mean(at_optimum, torch.zeros(at_optimum.shape[1])) < Z
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.add_(0.2)
        moved = rows(100)
    assert z_of_mean(moved, torch.zeros(moved.shape[1])) > Z


class Cubature(Composite):
    """Draws at ``±√n`` along each of the n axes of both parts' noise in turn: they integrate a quadratic exactly."""

    turn = 0

    @property
    def num_nodes(self) -> int:
        """Number of draws that integrate exactly."""
        return 2 * (self.facts.noise_size or 0)

    def step(self, model: Any, estimators: Any = None, *, sequential: bool = True, vectorize: bool = True) -> Step:
        return AutogradStep(self.layout, self.rsample, self.divergence)

    def rsample(self, noise: Tensor | None = None) -> Draws:
        size = self.num_nodes // 2
        noise = torch.zeros(size, dtype=torch.float64)
        noise[self.turn % size] = size**0.5 * (1.0 - 2.0 * (self.turn // size % 2))
        self.turn += 1
        return super().rsample(noise)


def test_half_and_half_reaches_the_right_marginals() -> None:
    """The deterministic optimum of the exact objective: means, the weights' covariance, the bias's variance."""
    data = ConjugateRegression()
    model, goal = data.model(), optimal(data, MeanField)
    joint = functools.partial(LowRankNormal, rank=data.dim, init_scale=0.1)
    guide = Cubature(model, [("weight", joint), ("bias", MeanField)]).double()
    elbo = ELBO(num_particles=guide.num_nodes)
    optimizer = torch.optim.LBFGS(
        guide.parameters(), max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        return elbo.loss_and_grads(model, guide, data.x, data.y)

    with pyro.validation_enabled(False):
        optimizer.step(closure)
    for found, expected in zip(guide.parts, goal.parts, strict=True):
        torch.testing.assert_close(found.flat_loc, expected.flat_loc, rtol=1e-4, atol=1e-5)
    covariances = [g.part("net.weight").joint() for g in (guide, goal)]
    found, expected = (q.cov_factor @ q.cov_factor.T + torch.diag(q.scale.square()) for q in covariances)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    scales = [g.part("net.bias").flat_log_scale.exp() for g in (guide, goal)]
    torch.testing.assert_close(*scales, rtol=1e-3, atol=0.0)


# ------------------------------------------------------------------------------------------------------ rules


def test_the_first_rule_that_matches_decides() -> None:
    guide = Composite(
        supervised(), [("net.2.*", LowRankNormal), ("*weight", MeanField), ("net.*", MAP), ("*", MeanField)]
    )
    assert sites_by_part(guide) == [
        ("LowRankNormal", ["net.2.weight", "net.2.bias"]),
        ("MeanField", ["net.0.weight"]),
        ("MAP", ["net.0.bias"]),
        ("MeanField", ["likelihood.scale"]),
    ]
    assert list(guide.layout) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "likelihood.scale"]
    assert guide.part("net.0.bias") is guide.parts[2]


def test_parameters_are_also_known_by_their_names_in_the_network() -> None:
    guide = Composite(
        supervised(prior=priors.latent_scale()), [("0.weight*", MeanField), (("2.*", "net.0.bias*"), MAP), ("*", MAP)]
    )
    assert sites_by_part(guide)[:2] == [
        ("MeanField", ["net.0.weight.scale", "net.0.weight"]),
        ("MAP", [n for n in guide.layout if n.startswith("net.2.") or n.startswith("net.0.bias")]),
    ]


def test_a_tied_parameter_is_known_by_all_its_names() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    model = SupervisedModel(net, likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=12)
    for pattern in ("1.weight", "net.1.weight", "0.weight"):
        assert sites_by_part(Composite(model, [(pattern, MAP), ("*", MeanField)]))[0] == ("MAP", ["net.0.weight"])


def test_a_rule_whose_sites_are_taken_makes_no_part() -> None:
    assert sites_by_part(Composite(supervised(), [("*", MAP), ("net.*", MeanField)])) == [
        ("MAP", list(Layout.of(supervised())))
    ]


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        (
            [("net.7*", MAP), ("*", MAP)],
            ValueError,
            r"rules: the pattern 'net.7\*' matches no latent site.*net.0.weight",
        ),
        ([(("net.*", "x"), MAP)], ValueError, "rules: none covers the site 'likelihood.scale'"),
        ([], ValueError, "rules: none covers the site 'net.0.weight'"),
        ({"*": MAP}, TypeError, "rules: expected a list of pairs"),
        ("*", TypeError, "rules: expected a list of pairs"),
        ([("*", MAP, 3)], TypeError, r"rules: expected pairs \(pattern, family\)"),
        ([(nn.Linear, MAP)], TypeError, "rules: a pattern is a glob"),
        ([("*", "MAP")], TypeError, r"rules: the family of '\*' is a guide class"),
        (
            [("*", MAP(Sites(w=dist.Normal(0.0, 1.0)), example=()))],
            TypeError,
            r"rules: the family of '\*' is a guide class",
        ),
        ([("*", lambda model, sites: None)], TypeError, r"rules: the family of '\*' made no guide"),
        ([("*", lambda model, sites: MAP(model, sites=sites[:1]))], TypeError, r"the family of '\*' made no guide for"),
    ],
)
def test_rules_that_are_wrong(rules: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Composite(supervised(), rules)


def test_a_site_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"site: there is no latent site 'net.9'.*net.0.weight"):
        Composite(supervised(), THREE).part("net.9")


# ------------------------------------------------------------------------------------------ what is delegated


def test_state_is_complete_and_local() -> None:
    guide, twin = (Composite(supervised(), THREE) for _ in range(2))
    assert list(guide.state_dict()) == ["0.loc", "0.log_scale", "0.cov_factor", "1.loc", "1.log_scale", "2.loc"]
    twin.load_state_dict(guide.state_dict())
    assert_same(seeded(lambda: twin.sample(2)), seeded(lambda: guide.sample(2)))
    assert sum(p.numel() for p in guide.parameters()) == 10 * 4 + 16 * 2 + 1
    assert [id(p) for p in guide.scale_parameters()] == [
        id(dict(guide.named_parameters())[n]) for n in ("0.log_scale", "1.log_scale")
    ]
    assert not list(pyro.get_param_store().keys())


def test_each_site_has_its_own_parts_factor() -> None:
    model = supervised()
    rows = {row["site"]: row["posterior"] for row in describe(model, Composite(model, THREE)).rows}
    assert rows["net.0.weight"] == "Normal" and rows["net.2.weight"] == "LowRankGaussian"
    assert rows["likelihood.scale"] == "Delta"
    densities = Composite(model, [("net.0*", MeanField), ("*", LowRankNormal)])
    assert {row["kl"] for row in describe(model, densities).rows} == {"exact"}


def test_a_point_among_the_parts_leaves_no_density() -> None:
    guide = Composite(supervised(), THREE)
    densities = Composite(supervised(), [*THREE[:1], ("*", MeanField)])

    def name_of(composite: Composite) -> str:
        terms = {name: PriorTerm(site.prior) for name, site in composite.layout.items()}
        return composite.divergence(composite.rsample(), terms).name

    assert not guide.facts.has_density and name_of(guide) == "KL and -log prior"
    assert guide.facts.density == guide.facts.sites - {"likelihood.scale"}
    with pytest.raises(NotImplementedError, match=r"MAP has no density of the site 'likelihood\.scale'"):
        guide.log_prob(guide.sample(2))
    assert densities.facts.has_density and name_of(densities) == "KL"


def test_density_is_the_product_of_the_parts() -> None:
    guide = Composite(supervised(), [("net.0*", MeanField), ("*", LowRankNormal)])
    draws = guide.sample(4)
    expected = sum(part.log_prob({name: draws[name] for name in part.layout}) for part in guide.parts)
    torch.testing.assert_close(guide.log_prob(draws), expected)


def test_two_joint_parts_keep_their_auxiliary_sites_apart() -> None:
    guide = Composite(supervised(), [("net.0*", LowRankNormal), ("*", LowRankNormal)])
    nodes = poutine.trace(guide).get_trace().nodes
    auxiliary = [name for name, node in nodes.items() if node["type"] == "sample" and node["infer"].get("is_auxiliary")]
    assert len(auxiliary) == 2
    assert [name for name in nodes if name in guide.layout] == list(guide.layout)


def test_nested_maps() -> None:
    inner = functools.partial(Composite, rules=[("*.bias", MAP), ("*", MeanField)])
    model, data = supervised(), batch()
    guide = Composite(model, [("net.*", inner), ("*", LowRankNormal)])
    assert sites_by_part(guide) == [("Composite", list(guide.layout)[:4]), ("LowRankNormal", ["likelihood.scale"])]
    flat = Composite(model, [("net.*.bias", MAP), ("net.*", MeanField), ("*", LowRankNormal)])
    with torch.no_grad():
        for parameter, value in zip(flat.parameters(), guide.parameters(), strict=True):
            parameter.copy_(value)
    found, expected = (seeded(lambda g=g: gradients(model, g, data)) for g in (guide, flat))
    for ours, theirs in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_some_sites() -> None:
    guide = Composite(supervised(), [("2*", MeanField), ("*", MAP)], sites=["net.2.weight", "net.0.bias"])
    assert sites_by_part(guide) == [("MeanField", ["net.2.weight"]), ("MAP", ["net.0.bias"])]


def test_a_model_that_needs_an_example() -> None:
    case = next(case for case in CASES if case.needs_example)
    guide = Composite(case.model(), [("net.*", MeanField), ("*", MAP)], example=case.batch())
    assert set(guide.part("effect").layout) == {"effect", "precision"}


# ------------------------------------------------------------------------------------- ensembles among the parts


def shared_trunk(members: int = 3) -> tuple[SupervisedModel, Composite]:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=12)
    return model, Composite(model, [("3*", functools.partial(DeltaMixture, num_members=members)), ("*", MAP)])


def test_an_ensembles_head_sets_the_number_of_draws() -> None:
    """Each member is visited once a step; the trunk receives the mean of the members' gradients."""
    model, guide = shared_trunk()
    data = torch.randn(12, 3), torch.randint(2, (12,))
    step = guide.step(model)
    assert step.num_samples(1) == step.num_samples(8) == 3
    found = gradients(model, guide, data)
    heads, trunk = guide.parts[0].flat_loc.detach(), guide.parts[1]
    by_member = []
    for member in range(3):
        values = guide.parts[0].layout.constrain(guide.parts[0].layout.split(heads[member]))
        single = MAP(model, values | trunk.rsample())
        by_member.append(gradients(model, single, data))
        joined = single.layout.split(by_member[-1]["guide.loc"])
        own = guide.parts[0].layout.join({name: joined[name] for name in guide.parts[0].layout})
        torch.testing.assert_close(found["guide.0.loc"][member], own, rtol=1e-4, atol=1e-4)
    losses = torch.stack([each["loss"] for each in by_member])
    torch.testing.assert_close(found["loss"], losses.mean(), rtol=1e-5, atol=1e-5)


def test_an_ensembles_draws_keep_their_buffers() -> None:
    model, guide = shared_trunk()
    draws = guide.sample(3)
    assert draws.buffers.keys() == guide.parts[0].sample(3).buffers.keys() != set()
    assert len({tuple(row.flatten().tolist()) for row in draws["net.3.weight"]}) == 3
    assert predict(model, guide, torch.randn(5, 3), num_samples=3).mean.shape == (5, 2)


def test_two_ensembles_are_refused() -> None:
    rules = [("net.0*", DeltaMixture), ("net.2*", functools.partial(DeltaMixture, num_members=3)), ("*", MAP)]
    with pytest.raises(
        ValueError, match=r"rules: DeltaMixture of 'net.0.weight' and DeltaMixture of 'net.2.weight' both"
    ):
        Composite(supervised(), rules)
    together = Composite(supervised(), [(("net.0*", "net.2*"), DeltaMixture), ("*", MAP)])
    assert together.step(None).num_samples(1) == 5


def test_swag_among_the_parts_follows_the_mode() -> None:
    guide = Composite(supervised(), [("net.2*", SWAG), ("*", MAP)])
    with pytest.raises(ValueError, match="SWAG has collected 0 of the 2 iterates"):
        guide.sample(1)
    for _ in range(3):
        with torch.no_grad():
            guide.part("net.2.bias").flat_loc.add_(0.1)
        guide.part("net.2.bias").collect()
    first, second = (guide.eval()() for _ in range(2))
    assert not torch.equal(first["net.2.weight"], second["net.2.weight"])
    assert torch.equal(first["net.0.weight"], second["net.0.weight"])


class Bare(PyroModule):
    """A site bears the name that a parameter has inside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=4).net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + pyro.sample("bias", dist.Normal(0.0, 1.0))


def test_a_sites_own_name_goes_before_a_parameters() -> None:
    guide = Composite(Bare(), [("bias", MeanField), ("*", MAP)], example=(torch.randn(4, 2),))
    assert sites_by_part(guide)[0] == ("MeanField", ["bias"])


def test_a_divergence_that_is_not_in_the_loss_pulls_no_part() -> None:
    guide = Composite(supervised(), [("*bias*", MeanField), ("*weight*", MAP), ("*", MeanField)])
    terms = {name: PriorTerm(site.prior) for name, site in guide.layout.items()}
    for counts in (False, True):
        guide.zero_grad()
        step = guide.step(None)
        draws = step.draw(0)
        divergence = step.divergence(draws, terms)
        loss = sum(0.0 * value.sum() for value in draws.values())
        (loss + divergence.total if counts else loss).backward()
        step.finish()
        found = [bool((parameter.grad == 0).all()) for parameter in guide.parameters()]
        assert not any(found) if counts else all(found)
