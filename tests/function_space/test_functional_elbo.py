"""The functional ELBO: bounds and optima of conjugate regression, measurement points, priors, the suite."""

from __future__ import annotations

import functools
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import pyrobnn as pb
from pyrobnn.function_space import DataBox, FunctionalELBO, Jitter, RandomNetworks, kernel
from pyrobnn.function_space.function_priors import prior_of
from pyrobnn.guides import MAP, Composite, DeltaMixture, LowRankEnsemble, LowRankNormal, MCDropout, MeanField
from pyrobnn.objectives import DisagreementTerm, OutlierExposure
from tests.conformance.comparisons import seeded
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_models import CASES
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.conformance.objective_suite import ObjectiveConformance


def smooth(x1: Tensor, x2: Tensor) -> Tensor:
    """A squared-exponential kernel of unit variance and length."""
    return (-0.5 * torch.cdist(x1.flatten(1), x2.flatten(1)).square()).exp()


class TestFunctionalELBO(ObjectiveConformance):
    def make(self) -> FunctionalELBO:
        return FunctionalELBO(smooth, DataBox(-2.0, 2.0, 5), temperature=0.5, num_samples=4)


class TestWithDraws(ObjectiveConformance):
    further_terms = frozenset({"outlier_exposure"})

    def make(self) -> FunctionalELBO:
        term = OutlierExposure(lambda x: 3.0 * x)
        prior = RandomNetworks(3, features=False)
        return FunctionalELBO(prior, functions="draws", num_draws=3, terms=[term], num_samples=4)


# ------------------------------------------------------------------------------------------------ known answers

NOISE = 1e-4
"""Jitter on both sides of the conjugate problem, as a variance."""


def linear_kernel(data: ConjugateRegression) -> Any:
    """The kernel of the conjugate model: linear functions with Normal weights."""
    return lambda a, b: data.prior_scale**2 * (a @ b.T + 1.0)


def conjugate(data: ConjugateRegression, **options: Any) -> FunctionalELBO:
    jitter = Jitter(NOISE, relative=False)
    return FunctionalELBO(linear_kernel(data), jitter=jitter, prior_jitter=jitter, **options)


def evidence_and_posterior(data: ConjugateRegression) -> tuple[float, MultivariateNormal]:
    """Log evidence under the jittered kernel, and its exact posterior at the data."""
    kernel = linear_kernel(data)(data.x, data.x) + NOISE * torch.eye(data.num_data).double()
    noise = data.noise**2 * torch.eye(data.num_data).double()
    y, zeros = data.y.squeeze(1), torch.zeros(data.num_data).double()
    gain = torch.linalg.solve(kernel + noise, kernel).T
    covariance = kernel - gain @ kernel
    posterior = MultivariateNormal(gain @ y, (covariance + covariance.T) / 2)
    return float(MultivariateNormal(zeros, kernel + noise).log_prob(y)), posterior


@pytest.mark.parametrize("family", [MeanField, LowRankNormal, DeltaMixture])
def test_it_misses_the_evidence_by_the_kl_to_the_posterior(family: Any) -> None:
    """X covers the data; the expected log likelihood is a quadrature, exact for Normal noise."""
    data = ConjugateRegression()
    model = data.model()
    torch.manual_seed(0)
    guide = family(model).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    objective = conjugate(data)
    loss = objective.loss(model, guide, data.x, data.y)
    evidence, posterior = evidence_and_posterior(data)
    q = objective.posterior
    assert q is not None
    gap = float(kl_divergence(MultivariateNormal(q.mean.flatten(), q.covariance), posterior))
    assert gap > 0.1 and -loss < evidence
    assert loss == pytest.approx(gap - evidence, rel=1e-6)


@pytest.mark.statistical
def test_an_ensemble_recovers_the_conjugate_posterior() -> None:
    """12 members span the 4 weights: trained, their functions at other inputs have the posterior's mean and covariance.

    Within 1 % of the posterior's standard deviations, and of its covariances.
    """
    data = ConjugateRegression()
    model = data.model()
    torch.manual_seed(0)
    guide = DeltaMixture(model, 12, init="prior").double()
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.998)
    objective = conjugate(data, num_samples=32)
    for _ in range(3000):
        optimizer.zero_grad()
        objective.backward(model, guide, (data.x, data.y), scale=None)
        optimizer.step()
        scheduler.step()
    new = torch.randn(5, data.dim, generator=torch.Generator().manual_seed(4)).double()
    features = torch.cat([new, torch.ones(5, 1).double()], 1)
    covariance = features @ torch.linalg.inv(data.precision) @ features.T
    members = guide.atoms(torch.arange(12))
    functions = torch.einsum("noi,bi->nbo", members["net.weight"], new).squeeze(2) + members["net.bias"]
    scale = covariance.diagonal().sqrt()
    assert float(((functions.mean(0) - features @ data.mean) / scale).abs().max()) < 0.01
    difference = torch.cov(functions.T, correction=0) - covariance
    assert float((difference / torch.outer(scale, scale)).abs().max()) < 0.01


def test_linearized_functions_are_exact_where_the_network_is_linear() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)
    objective = conjugate(data)
    objective.loss(model, guide, data.x, data.y)
    q = objective.posterior
    assert q is not None
    expected = data.features @ torch.diag(data.mean_field_variance) @ data.features.T
    torch.testing.assert_close(q.covariance, expected + NOISE * torch.eye(40).double())
    torch.testing.assert_close(q.mean.squeeze(1), data.features @ data.mean)


def test_linearized_functions_of_a_network_are_its_jacobians() -> None:
    """Mean and J Σ Jᵀ of a mean field against torch's Jacobian; a composite's point adds nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=6).double()
    x, y = torch.randn(6, 2).double(), torch.randn(6, 2).double()
    composite = Composite(model, [("net.2.*", lambda m, sites: MeanField(m, init_scale=0.2, sites=sites)), ("*", MAP)])
    for guide in (MeanField(model, init_scale=0.2).double(), composite.double()):
        objective = FunctionalELBO(smooth, jitter=Jitter(1e-3, relative=False))
        objective.loss(model, guide, x, y)
        noise = guide.facts.noise_size
        size = noise if noise is not None else 0

        def run(noise: Tensor, guide: Any = guide) -> Tensor:
            values = {name.removeprefix("net."): value for name, value in guide.rsample(noise).items()}
            return torch.func.functional_call(model.net.network, values, x).flatten()

        jacobian = torch.autograd.functional.jacobian(run, torch.zeros(size).double())
        q = objective.posterior
        assert q is not None
        torch.testing.assert_close(q.covariance, jacobian @ jacobian.T + 1e-3 * torch.eye(12).double())


def test_scaling_and_temperature_weigh_the_divergence() -> None:
    data = ConjugateRegression()
    model, batch = data.model(), (data.x[:8], data.y[:8])
    guide = data.optimal_guide(model)
    parts = []
    for options in ({}, {"temperature": 0.1}, {"temperature": 0.1, "scaling": "batch_size"}):
        objective = conjugate(data, **options)
        seeded(lambda objective=objective: objective.loss(model, guide, *batch))
        assert objective.parts is not None
        parts.append(objective.parts)
    assert [part.temperature for part in parts] == pytest.approx([1.0, 0.1, 0.1 * 40 / 8])
    assert len({float(part.divergence) for part in parts}) == 1


def test_weights_of_rows_and_missing_targets_count_as_in_the_elbo() -> None:
    data = ConjugateRegression()
    model = pb.SupervisedModel(
        nn.Linear(3, 1), pb.likelihoods.Normal(0.7, missing=True), dist.Normal(0.0, 1.5), num_data=40
    ).double()
    guide = MeanField(model).double()

    def likelihood(*batch: Tensor) -> float:
        objective = conjugate(data)
        seeded(lambda: objective.loss(model, guide, *batch))
        assert objective.parts is not None
        return float(objective.parts.log_likelihood)

    holes = data.y.clone()
    holes[3:] = torch.nan
    weight = (torch.arange(40) < 3).double()
    assert likelihood(data.x, holes) == pytest.approx(likelihood(data.x, data.y, weight))
    assert likelihood(data.x, data.y, 2 * weight) == pytest.approx(2 * likelihood(data.x, data.y, weight))


@pytest.mark.statistical
def test_quadrature_and_samples_have_one_expectation() -> None:
    """Counts with a log rate: one output by quadrature, the same beside another by 300 x 200 functions (z below 5)."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 2).double(), torch.tensor([0.0, 1.0, 3.0, 0.0, 2.0, 1.0]).double()
    one = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Poisson(), dist.Normal(0.0, 1.0), num_data=6).double()
    two = pb.SupervisedModel(nn.Linear(2, 2), pb.likelihoods.Poisson(), dist.Normal(0.0, 1.0), num_data=6).double()
    narrow, wide = MeanField(one, init_scale=0.3).double(), MeanField(two, init_scale=0.3).double()
    with torch.no_grad():
        for start in ("flat_loc", "flat_log_scale"):
            weight, bias = getattr(narrow, start)[:2], getattr(narrow, start)[2:]
            getattr(wide, start).copy_(torch.cat([weight, weight, bias, bias]))

    def likelihoods(model: Any, guide: Any, y: Tensor, count: int) -> Tensor:
        objective = FunctionalELBO(smooth, num_samples=200)
        found = []
        for _ in range(count):
            objective.loss(model, guide, x, y)
            assert objective.parts is not None
            found.append(objective.parts.log_likelihood)
        return torch.stack(found)

    exact = likelihoods(one, narrow, y.unsqueeze(1), 1)
    sampled = likelihoods(two, wide, torch.stack([y, y], 1), 300)
    assert z_of_mean(sampled / 2, float(exact)) < Z


def test_the_regularized_divergence_has_noise_on_both_sides() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)
    objective = conjugate(data, divergence="regularized", gamma=0.01)
    objective.loss(model, guide, data.x, data.y)
    assert objective.posterior is not None and objective.parts is not None
    q, eye = objective.posterior, torch.eye(40).double()
    prior = linear_kernel(data)(data.x, data.x) + (NOISE + 40 * 0.01) * eye
    own = MultivariateNormal(q.mean.flatten(), q.covariance + 40 * 0.01 * eye)
    expected = kl_divergence(own, MultivariateNormal(torch.zeros(40).double(), prior))
    assert float(objective.parts.divergence) == pytest.approx(float(expected), rel=1e-6)


# ------------------------------------------------------------------------------------ members, one pass or several


def test_members_run_at_once_or_one_after_another_alike() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=9).double()
    start = DeltaMixture(model, 4, init="prior").double()
    batch = torch.randn(9, 2).double(), torch.randint(3, (9,))
    found = []
    for vmap in (True, False):
        guide = DeltaMixture(model, 4, vmap=vmap).double()
        guide.load_state_dict(start.state_dict())
        objective = FunctionalELBO(smooth, lambda x: 2.0 * x[:4])
        seeded(lambda objective=objective, guide=guide: objective.backward(model, guide, batch))
        assert objective.step(model, guide)[0].vectorized == vmap
        assert objective.posterior is not None and objective.posterior.mean.shape == (13, 3)
        found.append((objective.parts, guide.flat_loc.grad))
    torch.testing.assert_close(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][0].loss, found[1][0].loss)


class OnlyTensors(nn.Module):
    """Uses values of tensors, which vmap cannot provide."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 if float(x.detach().sum()) > -1e9 else 0.0)


def test_a_network_that_vmap_cannot_run_is_looped() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), OnlyTensors(), nn.Linear(6, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=5)
    guide = DeltaMixture(model, 3, init="prior")
    objective = FunctionalELBO(smooth)
    batch = torch.randn(5, 2), torch.randn(5, 1)
    with pytest.warns(UserWarning, match=r"^vmap: torch cannot run this model"):
        objective.backward(model, guide, batch)
    objective.backward(model, guide, batch)
    assert not objective.step(model, guide)[0].vectorized


@pytest.mark.parametrize("family", [LowRankEnsemble, MCDropout, LowRankNormal])
def test_other_families_train(family: Any) -> None:
    """The loss falls in 60 steps."""
    case = CASES[0]
    model, (x, y) = case.model(), case.batch()
    model.num_data = len(x)
    torch.manual_seed(0)
    guide = family(model)
    history = pb.fit(
        model,
        guide,
        [(x, y)],
        epochs=60,
        lr=1e-2,
        elbo=FunctionalELBO(smooth, DataBox.around(x)),
        seed=0,
        progress=False,
    )
    assert sum(history.elbo[-10:]) > sum(history.elbo[:10])


# -------------------------------------------------------------------------------------------------------- priors


def test_random_networks_have_the_covariance_of_draws_of_the_weights() -> None:
    """With the last layer integrated out, 2,000 networks of width 3 against the outputs of 20,000 (z below 5)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    rules = [("2.weight", dist.Normal(0.0, torch.tensor([[0.5], [2.0]]))), ("*", dist.Normal(0.0, 1.0))]
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), rules, num_data=4).double()
    x = torch.randn(4, 2).double()
    like, none = torch.zeros(4, 2).double(), Jitter(0.0)
    first, second, third = (
        torch.randn(20_000, 3, 2).double(),
        torch.randn(20_000, 3).double(),
        torch.randn(20_000, 2, 3).double(),
    )
    hidden = (torch.einsum("bi,kji->kbj", x, first) + second.unsqueeze(1)).tanh()
    outputs = torch.einsum("kbj,kcj->kcb", hidden, third * torch.tensor([[0.5], [2.0]]).double())
    outputs = outputs + torch.randn(20_000, 2, 1).double()
    products = outputs.unsqueeze(3) * outputs.unsqueeze(2)
    expected, error = products.mean(0), products.std(0) / 20_000**0.5
    with_features = RandomNetworks(2000, seed=1)(model, x, 2, like, none).covariance
    plain = RandomNetworks(2000, features=False, seed=1)(model, x, 2, like, none)
    assert with_features.shape == plain.covariance.shape == (2, 4, 4)
    assert float(((with_features - expected) / (2 * error)).abs().max()) < Z
    assert float(((plain.covariance - expected) / (4 * error)).abs().max()) < Z
    again = RandomNetworks(2000, seed=1)(model, x, 2, like, none).covariance
    assert torch.equal(again, with_features)


def test_a_shared_kernel_where_all_outputs_have_one() -> None:
    model = CASES[0].model()
    prior = RandomNetworks(2)(model, torch.randn(5, 3), 3, torch.zeros(5, 3), Jitter(0.05))
    assert prior.covariance.shape == (5, 5) and prior.jitter.startswith("5 % of the mean variance, ")


def test_the_kernel_of_the_infinitely_wide_network_is_a_prior() -> None:
    """A network with weights on infinitely many hidden units beside one on 20,000 (5 % of the variance)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 20_000), nn.ReLU(), nn.Linear(20_000, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), pb.priors.he(), num_data=4)
    x, like = torch.randn(4, 2), torch.zeros(4, 1)
    wide = prior_of(functools.partial(kernel, model))(model, x, 1, like, Jitter(0.0)).covariance
    finite = RandomNetworks(3, seed=0)(model, x, 1, like, Jitter(0.0)).covariance
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, finite, rtol=0.05, atol=0.05 * float(wide.diagonal().mean()))


def test_kernels_of_gpytorch_are_priors() -> None:
    gpytorch = pytest.importorskip("gpytorch")
    x = torch.randn(5, 3)
    found = prior_of(gpytorch.kernels.RBFKernel())(CASES[0].model(), x, 3, torch.zeros(5, 3), Jitter(0.0))
    length = float(torch.nn.functional.softplus(torch.zeros(())))
    expected = (-0.5 * torch.cdist(x, x).square() / length**2).exp()
    torch.testing.assert_close(found.covariance.detach(), expected, rtol=1e-4, atol=1e-5)


def test_priors_are_refused_by_name() -> None:
    for bad in (3, "rbf", None, nn.Linear):
        with pytest.raises(TypeError, match=r"^prior: expected a kernel"):
            prior_of(bad)
    model, like = CASES[0].model(), torch.zeros(5, 3)
    x = torch.randn(5, 3)
    with pytest.raises(TypeError, match=r"^prior: the kernel returned a float"):
        prior_of(lambda a, b: 1.0)(model, x, 3, like, Jitter())
    with pytest.raises(ValueError, match=r"^prior: the kernel returned shape \(5,\) for 5 points and 3 outputs"):
        prior_of(lambda a, b: torch.ones(5))(model, x, 3, like, Jitter())
    with pytest.raises(ValueError, match=r"^num_networks: one function"):
        RandomNetworks(1, features=False)
    heavy = pb.SupervisedModel(nn.Linear(3, 3), pb.likelihoods.Categorical(), dist.Laplace(0.0, 1.0), num_data=5)
    with pytest.raises(ValueError, match=r"^prior: the site 'net.weight' of the last layer has no Normal prior"):
        RandomNetworks()(heavy, x, 3, like, Jitter())
    activated = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    bent = pb.SupervisedModel(activated, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5)
    with pytest.raises(ValueError, match=r"^prior: the network does not end in a linear layer"):
        RandomNetworks()(bent, x, 3, like, Jitter())


# ------------------------------------------------------------------------------------------------ context points


def test_a_box_of_the_data() -> None:
    x = torch.tensor([[0.0, -1.0], [2.0, 1.0]])
    box = DataBox.around(x, 0.5, 2000)
    points = seeded(lambda: box(x))
    assert points.shape == (2000, 2)
    assert bool((points > torch.tensor([-1.0, -2.0])).all() and (points < torch.tensor([3.0, 2.0])).all())
    torch.testing.assert_close(points.mean(0), torch.tensor([1.0, 0.0]), rtol=0, atol=5 * 4 / math.sqrt(12 * 2000))


def test_loaders_begin_again_and_lose_their_targets() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)
    loader = [(data.x[:3], data.y[:3]), (data.x[:5], data.y[:5])]
    objective = conjugate(data, context=loader)
    sizes = []
    for _ in range(3):
        objective.loss(model, guide, data.x[5:], data.y[5:])
        assert objective.posterior is not None
        sizes.append(len(objective.posterior.mean) - 35)
    assert sizes == [3, 5, 3]


def test_context_of_another_kind_is_refused() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)
    for context, kind, text in (
        (lambda x: x[:, :2], ValueError, r"its points have shape \(2,\) each, but inputs have shape \(3,\)"),
        (lambda x: x[:0], ValueError, "it gave no points"),
        (lambda x: x.float(), ValueError, "its points are of torch.float32"),
        (lambda x: (x, x), TypeError, "must be one tensor each, got Tensor and tuple"),
        ([], ValueError, "it yields no batch"),
        (DataBox(torch.zeros(2), torch.ones(2)), ValueError, r"the box has corners of shape \(2,\)"),
    ):
        with pytest.raises(kind, match=rf"^context: .*{text}"):
            conjugate(data, context=context).loss(model, guide, data.x, data.y)
    for bad in (3, "a", data.x, DataBox):
        with pytest.raises(TypeError, match=r"^context: expected a DataBox"):
            conjugate(data, context=bad)
    with pytest.raises(ValueError, match=r"^low: "):
        DataBox(1.0, 0.0)
    with pytest.raises(ValueError, match=r"^high: "):
        DataBox(torch.zeros(2), torch.zeros(3))
    with pytest.raises(TypeError, match=r"^low: "):
        DataBox("a", 1.0)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ refusals


def test_bad_options_are_refused_by_name() -> None:
    for options, kind, name in (
        ({"functions": "all"}, ValueError, "functions"),
        ({"divergence": "js"}, ValueError, "divergence"),
        ({"divergence": "regularized"}, ValueError, "gamma"),
        ({"gamma": 0.1}, ValueError, "gamma"),
        ({"divergence": "regularized", "gamma": 0.0}, ValueError, "gamma"),
        ({"scaling": "batch"}, ValueError, "scaling"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"num_draws": 0}, ValueError, "num_draws"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"jitter": -0.1}, ValueError, "jitter"),
        ({"prior_jitter": math.nan}, ValueError, "prior_jitter"),
        ({"prior_jitter": Jitter(0.1, by_point=True)}, ValueError, "prior_jitter"),
        ({"terms": [3]}, TypeError, "terms"),
        ({"terms": [pb.objectives.LogLikelihoodTerm()]}, ValueError, "terms"),
    ):
        with pytest.raises(kind, match=rf"^{name}: "):
            FunctionalELBO(smooth, **options)  # type: ignore[arg-type]
    assert FunctionalELBO(smooth, terms=[DisagreementTerm(lambda x: x, 0.5, 1.0)]).terms[-1].name == "regularizer"


def test_models_and_guides_that_have_no_functions_are_refused() -> None:
    data = ConjugateRegression()
    model, batch = data.model(), (data.x, data.y)
    for guide, options, text in (
        (MAP(model), {}, "guide: MAP is trained as a point"),
        (pb.guides.Laplace(model), {}, "guide: Laplace is trained as a point"),
        (MeanField(model), {"functions": "members"}, "functions: MeanField has no members"),
        (DeltaMixture(model), {"functions": "linearized"}, "functions: DeltaMixture does not make its draws"),
    ):
        with pytest.raises(TypeError, match=f"^{text}"):
            conjugate(data, **options).loss_and_grads(model, guide.double(), *batch)  # type: ignore[arg-type]
    latent = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(dist.LogNormal(0.0, 0.5)), num_data=40).double()
    with pytest.raises(TypeError, match=r"^model: its likelihood has the latent site 'scale'"):
        conjugate(data).loss(latent, MeanField(latent).double(), *batch)
    with pytest.raises(ValueError, match=r"^y: "):
        conjugate(data).loss(model, MeanField(model).double(), data.x)
    with pytest.raises(ValueError, match=r"^functions: the Jacobian of 40 function values by 4 numbers"):
        conjugate(data, max_bytes=1000).loss(model, MeanField(model).double(), *batch)
    with pytest.raises(ValueError, match=r"^jitter: .* has rank 5 at most, of 40, so it needs a positive jitter"):
        FunctionalELBO(smooth, jitter=Jitter(0.0)).loss(model, DeltaMixture(model, 5, init="prior").double(), *batch)
    with pytest.raises(ValueError, match=r"^prior: .* not positive definite after the jitter \(0, 0\); its smallest"):
        FunctionalELBO(linear_kernel(data), prior_jitter=Jitter(0.0, relative=False)).loss(
            model, MeanField(model).double(), *batch
        )
