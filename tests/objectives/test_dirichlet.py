"""Objectives of Dirichlet networks: the suite, each loss against torch and draws, weights and masks, outliers."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Dirichlet as TorchDirichlet
from torch.distributions import kl_divergence

import pyrobnn as pb
from pyrobnn.guides import MAP, Laplace, MCDropout, MeanField
from pyrobnn.model.likelihoods import Dirichlet
from pyrobnn.model.likelihoods.dirichlet import DirichletPrediction
from pyrobnn.objectives import DirichletELBO, DirichletOutliers, DirichletTerm, MisleadingEvidence, Objective
from tests.conformance import objective_suite
from tests.conformance.monte_carlo import z_of_mean
from tests.conformance.objective_suite import ObjectiveConformance, Problem
from tests.objectives.rings import classes_and_rings

FORMS = ("digamma", "reverse", "forward", "squared")
LABELS = torch.tensor([0, 2, 3, 3, 1])
ONE_HOT = F.one_hot(LABELS, 4).double()


def gammas(seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(5, 4, generator=generator, dtype=torch.float64)).exp()


class DirichletObjectiveConformance(ObjectiveConformance):
    """The suite's problem with another likelihood."""

    def problem(self, family: str) -> Problem:
        model, guide, batch = objective_suite.make_problem(family)
        model.likelihood = Dirichlet("softplus")
        return model, guide, batch


class TestPriorNetworkConformance(DirichletObjectiveConformance):
    further_terms = frozenset({"dirichlet", "outliers"})

    def make(self) -> Objective:
        return DirichletELBO(outliers=[3.0 * torch.ones(4, 3).double(), -torch.ones(2, 3).double()], outlier_weight=0.7)


class TestEvidentialConformance(DirichletObjectiveConformance):
    further_terms = frozenset({"dirichlet", "misleading_evidence"})

    def make(self) -> Objective:
        return DirichletELBO("squared")


# ------------------------------------------------------------------------------------------------ losses of a datum


@pytest.mark.parametrize("evidence", [1.0, 100.0])
@pytest.mark.parametrize("smoothing", [None, 0.02])
def test_digamma_is_the_divergence_up_to_a_constant(evidence: float, smoothing: float | None) -> None:
    """The constant is minus the log of the Dirichlet–multinomial evidence of the labels; gradients are equal."""
    digamma, reverse = (
        DirichletTerm(form, evidence=evidence, smoothing=smoothing)  # type: ignore[arg-type]
        for form in ("digamma", "reverse")
    )
    found, slopes = [], []
    for seed in range(4):
        gamma = gammas(seed).requires_grad_()
        both = [term.loss(gamma, ONE_HOT) for term in (digamma, reverse)]
        found.append(both[0].detach() - both[1].detach())
        slopes.append([torch.autograd.grad(value.sum(), gamma)[0] for value in both])
    for difference, (ours, theirs) in zip(found, slopes, strict=True):
        torch.testing.assert_close(difference, found[0])
        torch.testing.assert_close(ours, theirs)
    beta = reverse.target(ONE_HOT)

    def log_beta(alpha: Tensor) -> Tensor:
        return torch.lgamma(alpha).sum(-1) - torch.lgamma(alpha.sum(-1))

    torch.testing.assert_close(found[0], log_beta(torch.ones_like(beta)) - log_beta(beta))


def test_the_digamma_form_is_written_out() -> None:
    """``λ⁻¹ [ψ(γ0) - ψ(γ_y)] + KL[Dir(γ) ‖ Dir(1)]``."""
    gamma = gammas()
    surprise = torch.digamma(gamma.sum(-1)) - torch.digamma(gamma[range(5), LABELS])
    expected = 100 * surprise + kl_divergence(TorchDirichlet(gamma), TorchDirichlet(torch.ones(5, 4).double()))
    torch.testing.assert_close(DirichletTerm("digamma").loss(gamma, ONE_HOT), expected)


@pytest.mark.statistical
def test_the_digamma_form_is_an_expectation_over_probabilities() -> None:
    """100,000 probabilities of each datum, z below 4: 7 labels' log loss plus the log ratio of densities."""
    gamma = gammas(1, 0.7)
    torch.manual_seed(0)
    each, prior = TorchDirichlet(gamma), TorchDirichlet(torch.ones(5, 4).double())
    z = each.sample((100_000,))
    draws = -7 * z[:, range(5), LABELS].log() + each.log_prob(z) - prior.log_prob(z)
    assert z_of_mean(draws, DirichletTerm("digamma", evidence=7.0).loss(gamma, ONE_HOT)) < 4


@pytest.mark.parametrize("smoothing", [None, 0.01])
def test_divergences_in_both_directions(smoothing: float | None) -> None:
    gamma = gammas()
    smooth = 0.01 + 0.96 * ONE_HOT  # 1 - (C - 1) ε for the label, ε for each other class
    beta = 1 + 1000 * ONE_HOT if smoothing is None else 1000 * smooth
    for form, pair in (("forward", (beta, gamma)), ("reverse", (gamma, beta))):
        term = DirichletTerm(form, evidence=1000.0, smoothing=smoothing)  # type: ignore[arg-type]
        expected = kl_divergence(*map(TorchDirichlet, pair))
        torch.testing.assert_close(term.loss(gamma, ONE_HOT), expected)


@pytest.mark.statistical
def test_the_squared_error_is_an_expectation_and_misleading_evidence_a_divergence() -> None:
    """100,000 probabilities of each datum, z below 4."""
    gamma = gammas(2, 1.0)
    torch.manual_seed(0)
    z = TorchDirichlet(gamma).sample((100_000,))
    assert z_of_mean((ONE_HOT - z).square().sum(-1), DirichletTerm("squared").loss(gamma, ONE_HOT)) < 4
    other = gamma.clone()
    other[range(5), LABELS] = 1.0
    expected = kl_divergence(TorchDirichlet(other), TorchDirichlet(torch.ones_like(other)))
    torch.testing.assert_close(MisleadingEvidence().loss(gamma, ONE_HOT), expected)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_losses(form: Any) -> None:
    for term in (DirichletTerm(form, evidence=3.0), MisleadingEvidence()):
        assert torch.autograd.gradcheck(lambda gamma, term=term: term.loss(gamma, ONE_HOT), gammas().requires_grad_())


@pytest.mark.parametrize("form", ["digamma", "reverse", "forward"])
def test_the_target_is_the_minimum(form: Any) -> None:
    term = DirichletTerm(form, evidence=5.0)
    beta = term.target(ONE_HOT).requires_grad_()
    (slope,) = torch.autograd.grad(term.loss(beta, ONE_HOT).sum(), beta)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------------------- the sum over the data set


def problem(likelihood: Dirichlet | None = None, outputs: int = 4) -> tuple[pb.SupervisedModel, MAP, Tensor]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs))
    model = pb.SupervisedModel(net, likelihood or Dirichlet(), dist.Normal(0.0, 1.0), num_data=20).double()
    return model, MAP(model), torch.randn(5, 3, dtype=torch.float64)


def values(objective: Objective, model: Any, guide: Any, *batch: Any) -> dict[str, float]:
    objective.loss(model, guide, *batch)
    assert objective.parts is not None
    return {name: float(value) for name, value in objective.parts.values.items()}


@pytest.mark.parametrize("handled", [False, True], ids=["direct", "under handlers"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_masks_and_class_weights_count_as_in_the_log_likelihood(form: Any, handled: bool) -> None:
    """``N / B Σ ω_i c_y ℓ_i`` over labels that are not ignored."""
    model, guide, x = problem(Dirichlet("softplus", ignore_index=9, class_weight=[0.5, 1.0, 2.0, 3.0]))
    y = torch.where(LABELS == 1, 9, LABELS)
    weight = torch.tensor([1.0, 0.0, 2.5, 1.0, 1.0], dtype=torch.float64)
    objective, gamma = DirichletELBO(form), model.likelihood.concentrations(model.net.network(x))
    loss = DirichletTerm(form).loss(gamma, ONE_HOT)
    expected = 20 / 5 * (weight * torch.tensor([0.5, 2.0, 3.0, 3.0, 0.0]) * loss).sum()
    if handled:
        with pyro.poutine.trace():
            found = values(objective, model, guide, x, y, weight)
    else:
        found = values(objective, model, guide, x, y, weight)
    assert found["dirichlet"] == pytest.approx(float(expected), rel=1e-9)
    plain = values(pb.objectives.ELBO(), model, guide, x, y, weight)
    assert found["log_likelihood"] == pytest.approx(plain["log_likelihood"])
    assert objective.weights()["log_likelihood"] == 0
    assert float(objective.parts.loss) == pytest.approx(sum(v for n, v in found.items() if n != "log_likelihood"))


def test_pixels_of_a_row_add_up() -> None:
    torch.manual_seed(0)
    model = pb.SupervisedModel(nn.Conv2d(1, 4, 1), Dirichlet(class_dim=1), dist.Normal(0.0, 1.0), num_data=6).double()
    x, y = torch.randn(2, 1, 3, 5).double(), torch.randint(4, (2, 3, 5))
    objective = DirichletELBO(outliers=[x])
    gamma = model.net.network(x).exp().movedim(1, -1)
    uniform = TorchDirichlet(torch.ones_like(gamma))
    found = values(objective, model, MAP(model), x, y)
    expected = kl_divergence(TorchDirichlet(gamma), TorchDirichlet(1 + 100 * F.one_hot(y, 4).double())).sum()
    assert found["dirichlet"] == pytest.approx(3 * float(expected), rel=1e-9)
    expected = kl_divergence(TorchDirichlet(gamma), uniform).sum((1, 2)).mean()
    assert found["outliers"] == pytest.approx(6 * float(expected), rel=1e-9)


@pytest.mark.parametrize("form", ["reverse", "forward"])
def test_outliers_are_n_times_the_mean_divergence_from_no_evidence(form: Any) -> None:
    model, guide, x = problem()
    outliers = torch.randn(7, 3, dtype=torch.float64)
    found = values(DirichletELBO(form, outliers=[outliers], outlier_weight=0.3), model, guide, x, LABELS)
    gamma = model.net.network(outliers).exp()
    pair = TorchDirichlet(gamma), TorchDirichlet(torch.ones_like(gamma))
    expected = kl_divergence(*(pair if form == "reverse" else pair[::-1])).mean()
    assert found["outliers"] == pytest.approx(20 * float(expected), rel=1e-9)


def test_the_gradient_is_that_of_the_whole_objective() -> None:
    """By plain autograd, of a point estimate with outliers and misleading evidence; in half of a schedule."""
    model, guide, x = problem(Dirichlet("softplus"))
    outliers, schedule = torch.randn(7, 3, dtype=torch.float64), pb.schedules.Linear(0.0, 1.0, 3, hold=True)
    objective = DirichletELBO("squared", outliers=[outliers], outlier_weight=0.3, misleading_weight=schedule)
    objective.num_steps = 1
    objective.loss_and_grads(model, guide, x, LABELS)
    leaf = guide.flat_loc.detach().clone().requires_grad_()
    weights = {name.removeprefix("net."): value for name, value in guide.layout.split(leaf).items()}

    def gamma(inputs: Tensor) -> Tensor:
        return 1 + F.softplus(torch.func.functional_call(model.net.network, weights, (inputs,)))

    loss = DirichletTerm("squared").loss(gamma(x), ONE_HOT) + 0.5 * MisleadingEvidence().loss(gamma(x), ONE_HOT)
    at_outliers = gamma(outliers)
    divergence = kl_divergence(TorchDirichlet(at_outliers), TorchDirichlet(torch.ones_like(at_outliers)))
    prior = -dist.Normal(0.0, 1.0).log_prob(leaf).sum()
    (4 * loss.sum() + 0.3 * 20 * divergence.mean() + prior).backward()
    torch.testing.assert_close(guide.flat_loc.grad, leaf.grad)


def test_clamped_concentrations_keep_the_objective_finite() -> None:
    model, guide, x = problem()
    with torch.no_grad():
        guide.flat_loc.mul_(300.0)
    for form in FORMS:
        guide.zero_grad()
        model.likelihood = Dirichlet()
        objective = DirichletELBO(form, outliers=[x])  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match=r"^likelihood: .* of the concentrations of Dirichlet are clamped"):
            objective.loss_and_grads(model, guide, x, LABELS)
        assert bool(guide.flat_loc.grad.isfinite().all())


# ------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("family", [MAP, MeanField, MCDropout])
def test_outliers_lose_their_evidence_and_data_keep_theirs(family: Any) -> None:
    """Outliers that were not trained on, at another radius, have less than a tenth of the data's evidence."""
    x, y, ring, farther = classes_and_rings()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    model = pb.SupervisedModel(net, Dirichlet(), num_data=120)
    guide = family(model, p=0.05) if family is MCDropout else family(model)
    pb.fit(model, guide, [(x, y)], epochs=400, lr=0.01, elbo=DirichletELBO(outliers=[ring]), seed=0, progress=False)
    inside, outside = (pb.predict(model, guide, data, 10, seed=0) for data in (x, farther))
    assert isinstance(inside, DirichletPrediction) and isinstance(outside, DirichletPrediction)
    assert float((inside.predicted == y).double().mean()) > 0.95
    assert float(outside.alpha0.median()) < 0.1 * float(inside.alpha0.median())
    assert float(outside.distributional.median()) > float(inside.distributional.median())


def test_a_trained_point_is_taken_by_laplace() -> None:
    """Whose curvature is that of the plain density; its draws give both epistemic parts."""
    x, y, ring, _ = classes_and_rings()
    torch.manual_seed(0)
    model = pb.SupervisedModel(nn.Linear(2, 3), Dirichlet(), dist.Normal(0.0, 1.0), num_data=120)
    guide = Laplace(model, structure="full")
    pb.fit(model, guide, [(x, y)], epochs=50, lr=0.05, elbo=DirichletELBO(outliers=[ring]), seed=0, progress=False)
    guide.fit(model, [(x, y)])
    found = pb.predict(model, guide, x, 20, seed=0)
    assert isinstance(found, DirichletPrediction)
    torch.testing.assert_close(found.total, found.aleatoric + found.distributional + found.between_draws)
    assert bool((found.distributional > 0).all()) and float(found.between_draws.mean()) > 0


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DirichletTerm("kl"), ValueError, r"^form: expected 'digamma', 'reverse', 'forward' or 'squared'"),  # type: ignore[arg-type]
        (lambda: DirichletTerm(evidence=0.0), ValueError, r"^evidence: "),
        (lambda: DirichletTerm(smoothing=0.0), ValueError, r"^smoothing: "),
        (lambda: DirichletTerm(weight=-1.0), ValueError, r"^weight: "),
        (lambda: DirichletOutliers([torch.ones(2, 3)], form="both"), ValueError, r"^form: expected 'reverse' or"),  # type: ignore[arg-type]
        (lambda: DirichletOutliers(3), TypeError, r"^outliers: expected a function of the inputs or an iterable"),  # type: ignore[arg-type]
        (lambda: DirichletELBO(outliers=torch.ones(2, 3)), TypeError, r"^outliers: "),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_what_is_found_at_the_first_step() -> None:
    model, guide, x = problem()
    plain = pb.SupervisedModel(nn.Linear(3, 4), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20)
    for terms in ([DirichletTerm()], [DirichletOutliers([torch.ones(2, 3)])]):
        objective = pb.objectives.ELBO(terms=terms)
        with pytest.raises(TypeError, match=r"^model: Dirichlet\w+ compares concentrations; .* got Categorical"):
            objective.loss_and_grads(plain, MAP(plain), x.float(), LABELS)
    with pytest.raises(ValueError, match=r"^smoothing: expected less than 1 / 4 for 4 classes, got 0.25"):
        DirichletELBO(smoothing=0.25).loss_and_grads(model, guide, x, LABELS)
    with pytest.raises(ValueError, match=r"^outliers: it yields no batch of inputs"):
        DirichletELBO(outliers=[]).loss_and_grads(model, guide, x, LABELS)
    with pytest.raises(ValueError, match=r"^outliers: the network does not take inputs of shape \(2, 5\); the data"):
        DirichletELBO(outliers=[torch.ones(2, 5).double()]).loss_and_grads(model, guide, x, LABELS)
