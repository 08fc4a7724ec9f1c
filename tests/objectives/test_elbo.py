"""The objective: the exact evidence and its gap, parts and units, plates, scales and masks, failures."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO, LogLikelihoodTerm, NonFiniteLossError
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_models import UserModel
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.conformance.objective_suite import ObjectiveConformance
from tests.guides.test_base import Sites

# -------------------------------------------------------------------------------------------- the evidence


@pytest.mark.statistical
def test_elbo_misses_the_evidence_by_the_known_gap() -> None:
    """At the optimum, 1200 evaluations; z-score below 5. The gap is more than 10 standard errors."""
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model, antithetic=False)
    elbo = ELBO()
    draws = -torch.tensor([elbo.loss(model, guide, data.x, data.y) for _ in range(1200)], dtype=torch.float64)
    assert z_of_mean(draws, data.log_evidence - data.gap) < Z
    error = float(draws.std()) / len(draws) ** 0.5
    assert data.gap > 10 * error and float(draws.mean()) < data.log_evidence


def test_elbo_with_the_exact_posterior_is_the_evidence() -> None:
    """One weight: the factorized posterior is exact, and log joint - log q is the evidence for every draw."""
    data = ConjugateRegression(dim=1)
    net, prior, noise = nn.Linear(1, 1, bias=False), dist.Normal(0.0, 1.5), likelihoods.Normal(0.7)
    model = SupervisedModel(net, noise, prior, num_data=40).double()
    precision = data.x.square().sum() / 0.49 + 1 / 2.25
    mean = (data.x * data.y).sum() / 0.49 / precision
    guide = MeanField(model).double()
    with torch.no_grad():
        guide.flat_loc.fill_(mean)
        guide.flat_log_scale.fill_(-0.5 * precision.log())
    covariance = 2.25 * data.x @ data.x.T + 0.49 * torch.eye(40, dtype=torch.float64)
    zeros = torch.zeros(40, dtype=torch.float64)
    evidence = float(dist.MultivariateNormal(zeros, covariance).log_prob(data.y.squeeze(-1)))
    for _ in range(3):
        assert -Trace_ELBO().loss(model, guide, data.x, data.y) == pytest.approx(evidence, rel=1e-6)
    elbo = ELBO()
    elbo.loss(model, guide, data.x, data.y)
    assert elbo.parts is not None
    kl = kl_divergence(dist.Normal(mean, precision**-0.5), prior)
    assert float(elbo.parts.divergence) == pytest.approx(float(kl), rel=1e-6)


@pytest.mark.statistical
def test_minibatches_are_unbiased() -> None:
    """Losses of all 5 disjoint minibatches average to the full loss: 250 sweeps, z-score below 5."""
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)
    batches = list(zip(data.x.split(8), data.y.split(8), strict=True))
    sweeps = [[ELBO().loss(model, guide, x, y) for x, y in batches] for _ in range(250)]
    assert z_of_mean(torch.tensor(sweeps, dtype=torch.float64).mean(1), data.gap - data.log_evidence) < Z


# ----------------------------------------------------------------------------------------- parts and units


def test_parts_are_per_datum_of_the_stated_size() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = MeanField(model).double()
    elbo = ELBO(temperature=0.5)
    loss = elbo.loss(model, guide, data.x[:10], data.y[:10])
    parts = elbo.parts
    assert parts is not None and parts.num_data == 40 and parts.temperature == 0.5
    per_datum = parts.per_datum()
    assert per_datum["kl"] == pytest.approx(float(parts.divergence) / 40)
    assert per_datum["elbo"] == pytest.approx(per_datum["log_likelihood"] - per_datum["kl"])
    assert per_datum["loss"] == pytest.approx(0.5 * per_datum["kl"] - per_datum["log_likelihood"])
    assert per_datum["loss"] * 40 == pytest.approx(loss, rel=1e-6) == pytest.approx(float(parts.loss), rel=1e-6)
    assert float(parts.elbo) == pytest.approx(40 * per_datum["elbo"], rel=1e-6)


def test_num_data_of_a_users_model_is_the_size_of_its_plate() -> None:
    model, batch = UserModel(), (torch.randn(12, 3), torch.randn(12))
    elbo = ELBO()
    elbo.loss(model, MAP(model, example=batch), *batch)
    assert elbo.parts is not None and elbo.parts.num_data == 24  # the batch has 12 rows


def test_particles_are_averaged() -> None:
    """Three particles equal the mean of three evaluations with the same noise, in value and gradient."""
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)
    losses, gradients = [], []
    for num_particles, repeats in ((3, 1), (1, 3)):
        pyro.set_rng_seed(3)
        guide.zero_grad()
        elbo = ELBO(num_particles=num_particles)  # its step begins with new noise
        losses.append(sum(elbo.loss_and_grads(model, guide, data.x, data.y) for _ in range(repeats)) / repeats)
        gradients.append([p.grad.clone() / repeats for p in guide.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_scale_of_backward_scales_the_gradient_only() -> None:
    data = ConjugateRegression()
    model = data.model()
    results = []
    for scale in (1.0, 0.025):
        guide = data.optimal_guide(model)
        pyro.set_rng_seed(3)
        parts = ELBO().backward(model, guide, (data.x, data.y), scale=scale)
        results.append((float(parts.loss), [p.grad / scale for p in guide.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1])


def test_several_particles_train_a_network_with_running_statistics() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=8)
    norm = model.net.network[1]
    guide, batch = MeanField(model), (torch.randn(8, 3), torch.randn(8, 1))
    ELBO(num_particles=3).loss_and_grads(model, guide, *batch)
    assert norm.num_batches_tracked == 1
    ELBO(num_particles=3).differentiable_loss(model, guide, *batch).backward()
    assert norm.num_batches_tracked == 2
    ELBO(num_particles=3).loss(model, guide, *batch)
    assert norm.num_batches_tracked == 2


# -------------------------------------------------------------------------------- plates, scales and masks


class Handled(PyroModule):
    """Weights in a plate and under a scale, observations under a mask and a tensor of scales."""

    def forward(self, y: Tensor) -> None:
        with poutine.scale(scale=0.3):
            shift = pyro.sample("shift", dist.Normal(0.5, 2.0))
        with poutine.mask(mask=torch.tensor([True, False, True])), pyro.plate("groups", 3):
            effect = pyro.sample("effect", dist.LogNormal(0.1, 0.7))
        masked = pyro.sample("unscored", dist.Normal(0.0, 1.0).mask(False))
        scales = torch.linspace(0.5, 2.0, len(y))
        with pyro.plate("data", 20, subsample=torch.arange(len(y))), poutine.scale(scale=scales):
            pyro.sample("y", dist.Normal(shift + effect.sum() + masked, 1.0), obs=y)


def test_plates_scales_and_masks_count_as_in_pyro() -> None:
    """A point estimate has no noise: equal to ``Trace_ELBO`` in value and gradient."""
    y = torch.randn(6)
    found = []
    for objective in (ELBO, Trace_ELBO):
        guide = MAP(Handled(), {"effect": torch.tensor([0.5, 1.0, 2.0])}, example=(y,))
        loss = objective().loss_and_grads(Handled(), guide, y)
        found.append((loss, guide.flat_loc.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_scaled_sites_leave_the_flat_vectors() -> None:
    """A prior under ``poutine.scale`` counts scaled, though its KL could be taken on flat vectors."""
    model = Sites(a=dist.Normal(0.0, 1.0), b=dist.Normal(0.0, 1.0))
    guide = MeanField(model, {"a": torch.tensor(1.5), "b": torch.tensor(-0.5)}, example=())
    full = ELBO().loss(model, guide)
    for _ in range(2):
        in_place = ELBO().loss_and_grads(poutine.scale(model, scale=0.25), guide)
        assert in_place == pytest.approx(0.25 * full, rel=1e-5)
        expected = 0.25 * (guide.flat_log_scale.detach().mul(2).exp() - 1.0)
        torch.testing.assert_close(guide.flat_log_scale.grad, expected)
        torch.testing.assert_close(guide.flat_loc.grad, 0.25 * guide.flat_loc.detach())
        guide.zero_grad()


# ----------------------------------------------------------------------------------- guides from elsewhere


@pytest.mark.parametrize("num_particles", [1, 3])
def test_other_guides_get_pyros_objective(num_particles: int) -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = AutoNormal(model)
    guide(data.x, data.y)
    losses = []
    for objective in (ELBO, TraceMeanField_ELBO):
        elbo = objective(num_particles=num_particles)
        pyro.set_rng_seed(4)
        losses.append([elbo.loss(model, guide, data.x, data.y), elbo.loss_and_grads(model, guide, data.x, data.y)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert ELBO().parts is None


def test_svi_with_an_autoguide() -> None:
    data = ConjugateRegression()
    model = data.model()
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), ELBO())
    losses = [svi.step(data.x, data.y) for _ in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


# ------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("num_particles", [0, -1, 1.5, True])
def test_number_of_particles(num_particles: object) -> None:
    with pytest.raises(ValueError, match="num_particles: expected a positive int"):
        ELBO(num_particles=num_particles)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), "a"])
def test_weight_of_the_likelihood(weight: Any) -> None:
    with pytest.raises(ValueError, match="likelihood_weight: expected a number of at least 0"):
        ELBO(likelihood_weight=weight)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "a", None])
def test_weight_of_a_term(weight: Any) -> None:
    with pytest.raises(ValueError, match="weight: expected a finite number"):
        LogLikelihoodTerm(weight)


def test_a_site_the_guide_does_not_know() -> None:
    guide = MeanField(Sites(a=dist.Normal(0.0, 1.0)), example=())
    with pytest.raises(ValueError, match="site 'b': the model sampled it but the guide does not have it"):
        ELBO().loss(Sites(a=dist.Normal(0.0, 1.0), b=dist.Normal(0.0, 1.0)), guide)


def regression() -> tuple[SupervisedModel, Tensor, Tensor]:
    noise = likelihoods.Normal(dist.LogNormal(0.0, 1.0))
    model = SupervisedModel(nn.Linear(3, 1), noise, dist.Normal(0.0, 1.0), num_data=8)
    return model, torch.randn(8, 3), torch.randn(8, 1)


def test_non_finite_likelihood_is_named() -> None:
    model, x, y = regression()
    guide = MeanField(model)
    with pytest.raises(NonFiniteLossError, match="log likelihood of the site 'y'") as raised:
        ELBO().loss_and_grads(model, guide, x, 1e30 * y)
    assert "KL" not in str(raised.value) and "draw" not in str(raised.value)
    assert guide.flat_loc.grad is None and guide.flat_log_scale.grad is None


def test_non_finite_kl_is_named() -> None:
    model = Sites(w=dist.Normal(0.0, 1.0))
    guide = MeanField(model, example=(), init_scale=1e25)
    with pytest.raises(NonFiniteLossError, match=r"the divergence of the latent sites \(inf\)"):
        ELBO().loss_and_grads(model, guide)
    assert guide.flat_loc.grad is None


@pytest.mark.parametrize("site", ["net.weight", "likelihood.scale"])
def test_a_parameter_that_became_nan_is_named(site: str) -> None:
    """Also where Pyro's validation would refuse the network's output first."""
    model, x, y = regression()
    guide = MeanField(model)
    with torch.no_grad():
        guide.layout.split(guide.flat_loc)[site].fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=f"the draw of the site '{site}'"):
        ELBO().loss_and_grads(model, guide, x, y)


@pytest.mark.parametrize("validates", [True, False])
def test_of_many_draws_that_became_nan_three_are_named(validates: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model = SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=8)
    guide = MeanField(model)
    with torch.no_grad():
        guide.flat_loc.fill_(float("nan"))
    with (
        pyro.validation_enabled(validates),
        pytest.raises(
            NonFiniteLossError, match=r"'net.0.weight', .*'net.0.bias', .*'net.1.weight' and of 3 more"
        ) as raised,
    ):
        ELBO().loss_and_grads(model, guide, torch.randn(8, 3), torch.randn(8, 1))
    assert "net.2" not in str(raised.value)


def test_no_gradient_is_added_when_a_later_particle_fails() -> None:
    class Flaky(nn.Linear):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return super().forward(x) * (1e30 if self.runs == 2 else 1.0)

    model = SupervisedModel(Flaky(3, 1), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=8)
    guide = MeanField(model)
    with pytest.raises(NonFiniteLossError, match="log likelihood of the site 'y'"):
        ELBO(num_particles=3).loss_and_grads(model, guide, torch.randn(8, 3), torch.randn(8, 1))
    assert all(p.grad is None or not bool(p.grad.any()) for p in guide.parameters())


# ------------------------------------------------------------------------------------------------- the suite


class TestELBOConformance(ObjectiveConformance):
    def make(self) -> ELBO:
        return ELBO()


class TestSeveralParticlesConformance(ObjectiveConformance):
    def make(self) -> ELBO:
        return ELBO(num_particles=3)


class TestTemperedConformance(ObjectiveConformance):
    def make(self) -> ELBO:
        return ELBO(temperature=0.3)
