"""Posteriors of infinitely wide networks: closed forms, conjugate regression, evidence, classes, refusals."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.function_space import InfiniteWidth, infinite_width, kernel, log_evidence
from pyrobnn.function_space.evidence import fitted_noise
from pyrobnn.function_space.gaussians import Jitter
from pyrobnn.function_space.process_noise import log_largest

GENERATOR = torch.Generator().manual_seed(0)
X, NEW = torch.randn(20, 3, generator=GENERATOR), torch.randn(7, 3, generator=GENERATOR)
Y = torch.stack([X[:, 0].sin(), X[:, 1] * X[:, 2]], 1)
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()


def network(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, outputs))


def regression(noise: float = 0.3, net: nn.Module | None = None) -> pb.SupervisedModel:
    made = network() if net is None else net
    return pb.SupervisedModel(made, pb.likelihoods.Normal(noise), pb.priors.lecun(), num_data=20).double()


def closed_form(model: pb.SupervisedModel, noise: float) -> tuple[Tensor, Tensor]:
    """Rasmussen & Williams (2006), equations 2.25 and 2.26."""
    prior, cross, own = kernel(model, X), kernel(model, NEW, X), kernel(model, NEW)
    inverse = torch.linalg.inv(prior + noise**2 * torch.eye(20, dtype=torch.float64))
    return cross @ inverse @ Y.double(), own - cross @ inverse @ cross.mT


def test_the_posterior_is_the_closed_form() -> None:
    model = regression()
    gp = infinite_width(model, X.double(), Y.double())
    mean, covariance = closed_form(model, 0.3)
    found = pb.predict(model, gp, NEW.double())
    torch.testing.assert_close(found.mean, mean, rtol=1e-5, atol=1e-6)
    variance = covariance.diagonal().unsqueeze(1).expand(-1, 2)
    torch.testing.assert_close(found.epistemic, variance, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.aleatoric, torch.full_like(variance, 0.09))
    joint = pb.predict_joint(model, gp, NEW.double(), 3, seed=0)
    for output in joint.covariance_by_output:
        torch.testing.assert_close(output, covariance, rtol=1e-4, atol=1e-6)


def test_a_linear_model_has_its_conjugate_posterior() -> None:
    """The limit of a network without hidden layers is Bayesian linear regression."""
    model = regression(net=nn.Linear(3, 2))
    found = pb.predict(model, infinite_width(model, X.double(), Y.double()), NEW.double())
    design = torch.cat([X, torch.ones(20, 1)], 1).double()
    new = torch.cat([NEW, torch.ones(7, 1)], 1).double()
    precision = torch.tensor([3.0, 3.0, 3.0, 1.0]).double().diag()  # lecun: 1 / 3 on weights, 1 on biases
    covariance = torch.linalg.inv(precision + design.mT @ design / 0.09)
    torch.testing.assert_close(found.mean, new @ covariance @ design.mT @ Y.double() / 0.09, rtol=1e-4, atol=1e-5)
    expected = ((new @ covariance) * new).sum(1)
    torch.testing.assert_close(found.epistemic[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_the_evidence_is_that_of_a_normal_distribution() -> None:
    model = regression()
    gp = infinite_width(model, X.double(), Y.double())
    covariance = kernel(model, X) + (0.09 + 1e-8) * torch.eye(20, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(20, dtype=torch.float64), covariance)
    expected = float(normal.log_prob(Y.double().mT).sum())
    assert gp.log_evidence == pytest.approx(expected, rel=1e-6)
    assert float(log_evidence(model, X, Y)) == pytest.approx(expected, rel=1e-6)


def test_gradients_of_the_evidence_are_those_of_differences() -> None:
    model = regression()
    start = torch.tensor([0.4, 0.2], dtype=torch.float64, requires_grad=True)

    def evidence(values: Tensor) -> Tensor:
        return log_evidence(model, X, Y, scales={"0.weight": values[0]}, noise=values[1])

    (gradient,) = torch.autograd.grad(evidence(start), start)
    for k in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[k] = 1e-5
        difference = (evidence(start.detach() + step) - evidence(start.detach() - step)) / 2e-5
        assert float(gradient[k]) == pytest.approx(float(difference), rel=1e-5)


def test_trained_networks_interpolate() -> None:
    """``"ntk"``: no variance and the targets themselves at the data; of a linear network as the NNGP without noise."""
    model = regression()
    gp = infinite_width(model, X.double(), Y.double(), kind="ntk")
    assert gp.log_evidence is None
    found = pb.predict(model, gp, X.double())
    torch.testing.assert_close(found.mean, Y.double(), rtol=1e-3, atol=1e-3)
    assert float(found.epistemic.max()) < 1e-4
    assert float(pb.predict(model, gp, 3 * NEW.double()).epistemic.mean()) > 0.03


def test_a_learned_noise_has_the_largest_evidence() -> None:
    """``Normal()``, untrained: σ is found; changing it by a tenth lowers the evidence."""
    model = pb.SupervisedModel(network(), pb.likelihoods.Normal(), pb.priors.lecun(), num_data=20).double()
    gp = infinite_width(model, X.double(), Y.double())
    at = [float(log_evidence(model, X, Y, noise=gp.noise * factor)) for factor in (0.9, 1.0, 1.1)]
    assert at[1] > max(at[0], at[2])


@pytest.mark.parametrize("rows", [1, 2, 20])
def test_the_learned_noise_is_the_one_that_choleskys_find(rows: int) -> None:
    """One tridiagonal matrix serves all values of the noise; the same search with a Cholesky for each ends there."""
    model = pb.SupervisedModel(network(), pb.likelihoods.Normal(), pb.priors.lecun(), num_data=20).double()
    covariance, targets = kernel(model, X[:rows]), Y[:rows].double()
    size = float(targets.square().mean().sqrt())

    def loss(log_noise: float) -> float:
        return -float(log_evidence(model, X[:rows], Y[:rows], noise=math.exp(log_noise)))

    bounds = (math.log(size * 1e-3), math.log(size * 10))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 0.01})
    found = fitted_noise(model, covariance, targets, Jitter(1e-8))
    torch.testing.assert_close(found, torch.full_like(found, math.exp(best.x)), rtol=1e-6, atol=0.0)


def test_it_predicts_like_any_posterior() -> None:
    """A loader, the method, streaming scores, and one seed for one result."""
    model = regression()
    data = TensorDataset(X.double(), Y.double())
    gp = infinite_width(model, DataLoader(data, 6))
    assert isinstance(gp, InfiniteWidth)
    whole, batches = gp.predict(X.double()), pb.predict(model, gp, DataLoader(data, 6))
    torch.testing.assert_close(whole.mean, batches.mean)
    assert batches.targets is not None
    assert pb.regression_report(model, gp, DataLoader(data, 6)) is not None
    first, again = (pb.predict_joint(model, gp, NEW.double(), 5, seed=1).draws for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.statistical
def test_functions_have_the_marginals_of_the_prediction() -> None:
    """4,000 functions, four standard errors of mean and variance."""
    model = regression()
    gp = infinite_width(model, X.double(), Y.double())
    draws = pb.predict_joint(model, gp, NEW.double(), 4000, seed=0).draws
    found = pb.predict(model, gp, NEW.double())
    assert bool(((draws.mean(0) - found.mean).abs() < 4 * (found.epistemic / 4000).sqrt()).all())
    assert bool(((draws.var(0) - found.epistemic).abs() < 4 * found.epistemic * (2 / 4000) ** 0.5).all())


def classes() -> pb.SupervisedModel:
    return pb.SupervisedModel(network(3), pb.likelihoods.Categorical(), num_data=20)


def test_classes_are_regressed_on() -> None:
    model = classes()
    gp = infinite_width(model, X, LABELS)
    found = pb.predict(model, gp, X, seed=0)
    torch.testing.assert_close(found.mean.sum(-1), torch.ones(20))
    assert float(pb.metrics.accuracy(found.mean, LABELS)) >= 0.9
    assert bool((found.epistemic >= -1e-6).all())
    joint = pb.predict_joint(model, gp, NEW, 20, seed=0)
    assert joint.expectations.shape == (20, 7, 3)


@pytest.mark.statistical
def test_the_class_of_the_largest_score() -> None:
    """100,000 draws of the noise, four standard errors."""
    scores, noise = torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64), 0.4
    found = log_largest(scores, torch.tensor(noise)).exp()
    drawn = scores + noise * torch.randn(100_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    shares = torch.bincount(drawn.argmax(1), minlength=3) / 100_000
    assert bool(((found - shares).abs() < 4 * (shares * (1 - shares) / 100_000).sqrt()).all())


def test_tuned_priors_have_a_larger_evidence() -> None:
    """From scales that are far too small."""
    prior = dist.Normal(0.0, 0.02)
    model = pb.SupervisedModel(network(), pb.likelihoods.Normal(0.1), prior, num_data=20).double()
    found = pb.tune_prior(model, [(X.double(), Y.double())], evidence="infinite_width")
    assert found.after > found.before + 10
    assert float(log_evidence(found.model, X, Y)) == pytest.approx(found.after, rel=1e-4)
    assert set(found.scales) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": Y[:, :1]}, ValueError, r"y: expected finite targets \[N, 2\]"),
        ({"y": Y[:10]}, ValueError, "expected all 20 training data"),
        ({"y": None}, TypeError, "pass targets with a tensor of inputs"),
        ({"noise": 0.0}, ValueError, "noise"),
        ({"kind": "relu"}, ValueError, "kind"),
        ({"model": network()}, TypeError, "model: expected a SupervisedModel"),
        ({"model": pb.SupervisedModel(network(), pb.likelihoods.Poisson(), num_data=20)}, TypeError, "likelihood"),
        ({"x": []}, ValueError, "loader holds no data"),
    ],
    ids=["targets", "rows", "no targets", "noise", "kind", "network", "likelihood", "empty loader"],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"model": regression(), "x": X.double(), "y": Y.double(), **change}
    if change == {"x": []}:
        given["y"] = None
    with pytest.raises(error, match=message):
        infinite_width(**given)


def test_a_singular_kernel_names_its_jitter_and_eigenvalue() -> None:
    """Networks trained to interpolate equal inputs with different targets."""
    model = regression()
    twice = X.double()[:10].repeat(2, 1)
    with pytest.raises(ValueError, match=r"after the jitter \(0 %.*its smallest eigenvalue is"):
        infinite_width(model, twice, Y.double(), kind="ntk", jitter=0.0)


def test_another_model_or_predictor_is_refused() -> None:
    model = regression()
    gp = infinite_width(model, X.double(), Y.double())
    with pytest.raises(ValueError, match="posterior of another model"):
        pb.predict(regression(), gp, NEW.double())
    with pytest.raises(ValueError, match="predicts by itself"):
        pb.predict(model, gp, NEW.double(), predictor="weights")
