"""Objectives as sums of terms: terms of one's own, their weights and reports, terms across draws, composites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, Composite, DeltaMixture, Guide, LowRankNormal, MeanField
from pyrobnn.objectives import ELBO, AdversarialELBO, Evaluation, Run, Term
from tests.conformance.objective_suite import ObjectiveConformance

NUM_DATA, ROWS = 40, 8
NAMES = ["local_reparameterization", "flipout", "per_example"]


class OutputPenalty(Term):
    """N times the mean square of the outputs of a draw."""

    name = "penalty"

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        return NUM_DATA * runs[0].outputs.square().mean()


class OutputVariance(Term):
    """The variance of the outputs over the draws of a step."""

    name = "spread"
    when = "across"

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        return torch.stack([run.outputs for run in runs]).var(0).sum()


def problem() -> tuple[pb.SupervisedModel, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=NUM_DATA).double()
    return model, (torch.randn(ROWS, 3, dtype=torch.float64), torch.randn(ROWS, 2, dtype=torch.float64))


def two_mean_fields(model: pb.SupervisedModel, like: MeanField) -> Composite:
    """A composite of two mean fields with the parameters of one."""
    guide = Composite(model, [("net.0.*", MeanField), ("*", MeanField)]).double()
    with torch.no_grad():
        for part in guide.parts:
            for own, whole in ((part.flat_loc, like.flat_loc), (part.flat_log_scale, like.flat_log_scale)):
                pieces = like.layout.split(whole)
                own.copy_(part.layout.join({name: pieces[name] for name in part.layout}))
    return guide


def gradients(guide: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in guide.parameters()]
    guide.zero_grad()
    return found


def outputs_of(model: pb.SupervisedModel, draw: Any, x: Tensor) -> Tensor:
    """The network's outputs under a draw, by plain torch."""
    weights = {name.removeprefix("net."): value for name, value in draw.items()}
    return torch.func.functional_call(model.net.network, weights, (x,))


# ------------------------------------------------------------------------------------------- terms of one's own


def test_a_term_is_added_with_its_weight_and_reported_by_name() -> None:
    """A point estimate has no noise: value and gradient are those of plain torch."""
    model, (x, y) = problem()
    guide = MAP(model).double()
    ELBO().loss_and_grads(model, guide, x, y)
    plain = gradients(guide)[0]
    elbo = ELBO(terms=[OutputPenalty(0.25)])
    loss = elbo.loss_and_grads(model, guide, x, y)
    found = gradients(guide)[0]
    penalty = NUM_DATA * outputs_of(model, guide.rsample(), x).square().mean()
    (slope,) = torch.autograd.grad(penalty, guide.flat_loc)
    torch.testing.assert_close(found, plain + 0.25 * slope)
    parts = elbo.parts
    assert parts is not None and list(parts.values) == ["log_likelihood", "divergence", "penalty"]
    assert float(parts.values["penalty"]) == pytest.approx(float(penalty.detach()))
    assert loss == pytest.approx(float(parts.loss)) == pytest.approx(float(-parts.elbo + 0.25 * penalty.detach()))
    assert parts.per_datum()["penalty"] == pytest.approx(float(penalty.detach()) / NUM_DATA)


def test_a_schedule_is_asked_with_the_training_step() -> None:
    model, batch = problem()
    guide = MAP(model).double()
    asked: list[int] = []

    def weight(step: int) -> float:
        asked.append(step)
        return 0.5 * step

    elbo = ELBO(terms=[OutputPenalty(weight)])
    for step in range(3):
        loss = elbo.loss_and_grads(model, guide, *batch)
        parts = elbo.parts
        assert parts is not None
        assert loss == pytest.approx(float(-parts.elbo + 0.5 * step * parts.values["penalty"]))
    assert sorted(set(asked)) == [0, 1, 2]


def test_fit_keeps_a_terms_history() -> None:
    """A heavy penalty pulls the outputs to zero, and the history shows it."""
    model, (x, y) = problem()
    model.num_data = ROWS
    sizes = {}
    for weight in (0.0, 30.0):
        guide = MAP(model).double()
        elbo = ELBO(terms=[OutputPenalty(weight)])
        history = pb.fit(model, guide, [(x, y)], epochs=60, lr=0.05, elbo=elbo, seed=0, progress=False)
        assert set(history.terms) == {"penalty"} and len(history.terms["penalty"]) == 60
        assert elbo.parts is not None
        sizes[weight] = float(outputs_of(model, guide.rsample(), x).square().mean().detach())
        before = float(elbo.parts.values["penalty"]) / ROWS
        assert history.terms["penalty"][-1] == pytest.approx(before)
    assert sizes[30.0] < 0.1 * sizes[0.0]


@pytest.mark.parametrize("family", [MAP, MeanField], ids=lambda family: family.__name__)
def test_a_term_in_a_loss_of_torch_and_under_pyros_svi(family: Any) -> None:
    """The same numbers as ``loss_and_grads`` for the same noise, and SVI's step takes the same gradient."""
    model, batch = problem()
    guide = family(model).double()
    results = []
    for differentiable in (False, True):
        elbo = ELBO(terms=[OutputPenalty(0.5)])
        pyro.set_rng_seed(0)
        if differentiable:
            loss = elbo(model, guide)(*batch)
            loss.backward()
        else:
            loss = torch.tensor(elbo.loss_and_grads(model, guide, *batch), dtype=torch.float64)
        results.append([loss.detach().double(), *gradients(guide)])
    torch.testing.assert_close(results[0], results[1])
    before = [p.detach().clone() for p in guide.parameters()]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo = ELBO(terms=[OutputPenalty(0.5)])
    loss = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), elbo).step(*batch)
    assert loss == pytest.approx(float(results[0][0]))
    for parameter, old, slope in zip(guide.parameters(), before, results[0][1:], strict=True):
        torch.testing.assert_close(parameter.detach(), old - 1e-3 * slope)


def test_a_term_across_draws_has_the_gradient_of_plain_autograd() -> None:
    model, (x, y) = problem()
    guide = MeanField(model, init_scale=0.2, antithetic=False).double()
    elbo = ELBO(num_particles=3, terms=[OutputVariance(0.7)])
    pyro.set_rng_seed(0)
    loss = elbo.loss_and_grads(model, guide, x, y)
    found = gradients(guide)
    pyro.set_rng_seed(0)
    outputs = torch.stack([outputs_of(model, guide.rsample(), x) for _ in range(3)])
    log_likelihood = NUM_DATA / ROWS * dist.Normal(outputs, 0.5).log_prob(y).sum() / 3
    spread, variance = outputs.var(0).sum(), (2.0 * guide.flat_log_scale).exp()
    kl = 0.5 * (variance + guide.flat_loc.square() - 1.0 - 2.0 * guide.flat_log_scale).sum()
    expected = kl - log_likelihood + 0.7 * spread
    torch.testing.assert_close(list(torch.autograd.grad(expected, list(guide.parameters()))), found)
    assert loss == pytest.approx(float(expected.detach()))
    assert elbo.parts is not None
    assert float(elbo.parts.values["spread"]) == pytest.approx(float(spread.detach()))
    pyro.set_rng_seed(0)
    elbo.differentiable_loss(model, guide, x, y).backward()
    torch.testing.assert_close(gradients(guide), found)


def test_a_term_across_the_members_of_an_ensemble() -> None:
    """All members are alive at once; each has M times the gradient of the mean over members, as in any step."""
    model, (x, y) = problem()
    guide = DeltaMixture(model, 3).double()
    plain, elbo = ELBO(), ELBO(terms=[OutputVariance(0.7)])
    plain.loss_and_grads(model, guide, x, y)
    before = gradients(guide)[0]
    loss = elbo.loss_and_grads(model, guide, x, y)
    found = gradients(guide)[0]
    outputs = torch.stack([outputs_of(model, guide.layout.split(guide.flat_loc[index]), x) for index in range(3)])
    spread = outputs.var(0).sum()
    assert elbo.parts is not None and plain.parts is not None
    assert float(elbo.parts.values["spread"]) == pytest.approx(float(spread.detach()))
    assert loss == pytest.approx(float(plain.parts.loss) + 0.7 * float(spread.detach()))
    (slope,) = torch.autograd.grad(spread, guide.flat_loc)
    torch.testing.assert_close(found, before + 3 * 0.7 * slope)


# -------------------------------------------------------------------------------------------------- composites


@pytest.mark.parametrize("name", NAMES)
def test_estimators_reach_the_mean_field_sites_of_a_composite(name: str) -> None:
    """The points are trained along: at a mean field without spread the gradients are those of one draw."""
    model, batch = problem()
    guide = Composite(model, [("net.0.*", lambda *a, **o: MeanField(*a, init_scale=1e-9, **o)), ("*", MAP)]).double()
    found = []
    for spec in (None, name):
        elbo = ELBO(estimator=spec)
        loss = elbo.loss_and_grads(model, guide, *batch)
        locs = [guide.parts[0].flat_loc.grad.clone(), guide.parts[1].flat_loc.grad.clone()]
        guide.zero_grad()
        found.append([torch.tensor(loss), *locs])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    seen: list[str] = []
    step = ELBO(estimator=name).step(model, guide)[0]
    for site, value in step.draw(0).items():
        if isinstance(value, pb.estimators.GaussianWeight):
            seen.append(site)
    assert seen == ["net.0.weight", "net.0.bias"]


@pytest.mark.parametrize(("family", "name"), [(MAP, "MAP"), (LowRankNormal, "LowRankNormal")])
def test_a_pattern_of_sites_that_are_no_gaussians_is_refused(family: Any, name: str) -> None:
    model, batch = problem()
    guide = Composite(model, [("net.0.*", MeanField), ("*", family)]).double()
    with pytest.raises(TypeError, match=rf"estimator: 'flipout' draws at the layers.*{name} has none for 'net.2.weig"):
        ELBO(estimator=[("net.2.*", "flipout")]).loss_and_grads(model, guide, *batch)
    ELBO(estimator=[("net.0.*", "flipout")]).loss_and_grads(model, guide, *batch)


@pytest.mark.parametrize("name", NAMES)
def test_two_mean_fields_are_one_under_estimators(name: str) -> None:
    """One graph of ordinary operations draws at the layers, in the same order for both."""
    model, batch = problem()
    one = MeanField(model, init_scale=0.2).double()
    found = []
    for guide in (one, two_mean_fields(model, one)):
        pyro.set_rng_seed(0)
        found.append(float(ELBO(estimator=name).differentiable_loss(model, guide, *batch).detach()))
    assert found[0] == pytest.approx(found[1])


def test_adversarial_sampling_of_two_mean_fields_is_that_of_one() -> None:
    """The same noise gives the same loss and gradients."""
    model, batch = problem()
    one = MeanField(model, init_scale=0.2, antithetic=False).double()
    two = two_mean_fields(model, one)
    noise = [torch.randn(one.layout.size, dtype=torch.float64) for _ in range(2)]

    def results(guide: Guide, locs: list[nn.Parameter], scales: list[nn.Parameter]) -> list[Tensor]:
        elbo = AdversarialELBO(0.4, step_size=0.1, num_steps=3)
        step = elbo.step(model, guide)[0]
        draw, blocks = step.draw, iter([noise[0]])

        def drawn(index: int | None, given: Tensor | None = None, *, avoid: Tensor | None = None) -> Any:
            return draw(index, next(blocks) if given is None else given, avoid=avoid)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, "draw", drawn)
            patch.setattr(torch, "randn", lambda *sizes, **options: noise[1].clone())
            loss = elbo.loss_and_grads(model, guide, *batch)
        assert elbo.parts is not None
        return [torch.tensor(loss), elbo.parts.values["adversarial_log_likelihood"]] + [
            torch.cat([p.grad for p in parameters]) for parameters in (locs, scales)
        ]

    parts = two.parts
    found = results(two, [p.flat_loc for p in parts], [p.flat_log_scale for p in parts])
    torch.testing.assert_close(found, results(one, [one.flat_loc], [one.flat_log_scale]))


def test_adversarial_sampling_needs_noise_in_every_part() -> None:
    model, batch = problem()
    guide = Composite(model, [("net.0.*", MeanField), ("*", DeltaMixture)]).double()
    with pytest.raises(TypeError, match=r"guide: adversarial sampling .* such as MeanField; got Composite"):
        AdversarialELBO().loss_and_grads(model, guide, *batch)


# ------------------------------------------------------------------------------------------------- the suite


class TestOwnTermConformance(ObjectiveConformance):
    further_terms = frozenset({"penalty"})

    def make(self) -> ELBO:
        return ELBO(terms=[OutputPenalty(0.5)])


class TestTermAcrossDrawsConformance(ObjectiveConformance):
    further_terms = frozenset({"spread"})

    def make(self) -> ELBO:
        return ELBO(terms=[OutputVariance(0.5)], num_particles=2)


def test_further_terms_are_refused_for_guides_of_pyro() -> None:
    """Pyro's own ELBO would leave them out without a word."""
    model, batch = problem()
    guide = AutoNormal(model)
    for objective in (ELBO(terms=[OutputPenalty()]), AdversarialELBO()):
        for call in (objective.loss, objective.loss_and_grads, objective.differentiable_loss):
            with pytest.raises(
                TypeError, match=r"^guide: the terms \w+ of the objective need a guide of pyrobnn, got Auto"
            ):
                call(model, guide, *batch)
