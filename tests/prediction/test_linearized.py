"""The linearized predictive: conjugate regression, MacKay's approximation, and draws of a linear last layer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods, predict
from pyrobnn.guides import MAP, Composite, Laplace
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import GaussianPrediction, predict_linearized
from pyrobnn.prediction.linearized import LinearizedPredictor
from pyrobnn.prediction.predictor import PredictorOptions
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.monte_carlo import Z, z_of_mean


def fitted(likelihood: Likelihood, y: Tensor, structure: Any = "last_layer", outputs: int = 2) -> Any:
    """A small network with its Laplace posterior, and its inputs."""
    torch.manual_seed(0)
    x = torch.randn(len(y), 3).double()
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))
    model = SupervisedModel(net, likelihood, dist.Normal(0.0, 1.0), num_data=len(y)).double()
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    return model, Laplace(model, structure=structure).double().fit(model, loader), x


def test_linear_regression_is_exact() -> None:
    """The predictive of new inputs, its log density, its parts."""
    data = ConjugateRegression()
    model = data.model()
    mode = {"net.weight": data.mean[:-1].unsqueeze(0), "net.bias": data.mean[-1:]}
    guide = Laplace(model, mode, structure="full").double()
    guide.fit(model, DataLoader(TensorDataset(data.x, data.y), batch_size=8))
    x = torch.randn(7, data.dim).double() * 3
    features = torch.cat([x, torch.ones(7, 1).double()], 1)
    variance = (features @ torch.linalg.inv(data.precision) * features).sum(1, keepdim=True)
    found = predict_linearized(model, guide, x)
    close = {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(found.mean, features @ data.mean.unsqueeze(1), **close)
    torch.testing.assert_close(found.epistemic, variance, **close)
    torch.testing.assert_close(found.aleatoric, torch.full_like(variance, data.noise**2), **close)
    torch.testing.assert_close(found.total, found.epistemic + found.aleatoric)
    y = torch.randn(7, 1).double()
    exact = torch.distributions.Normal(found.mean, found.total.sqrt())
    torch.testing.assert_close(found.log_prob(y), exact.log_prob(y).squeeze(1))
    low, high = found.interval(0.8)
    torch.testing.assert_close(exact.cdf(low), torch.full_like(low, 0.1))
    torch.testing.assert_close(exact.cdf(high), torch.full_like(low, 0.9))


def test_noise_of_each_output_is_that_of_two_regressions() -> None:
    """Two outputs with noise of their own are two independent regressions: posterior, evidence and predictive."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 2).double(), torch.randn(12, 2).double()
    features, new = (torch.cat([z, torch.ones(len(z), 1).double()], 1) for z in (x, torch.randn(5, 2).double()))
    scales = torch.tensor([0.2, 1.5]).double()
    mean, variance, evidence = [], [], 0.0
    for scale, target in zip(scales, y.T, strict=True):
        precision = features.T @ features / scale**2 + torch.eye(3).double()
        mean.append(torch.linalg.solve(precision, features.T @ target / scale**2))
        variance.append((new @ torch.linalg.inv(precision) * new).sum(1))
        marginal = features @ features.T + scale**2 * torch.eye(12).double()
        evidence += float(torch.distributions.MultivariateNormal(torch.zeros(12).double(), marginal).log_prob(target))
    weights = torch.stack(mean)
    for likelihood in (likelihoods.Normal(scales), likelihoods.Normal(scales, learn_scale=True)):
        model = SupervisedModel(nn.Linear(2, 2), likelihood, dist.Normal(0.0, 1.0), num_data=12).double()
        guide = Laplace(model, {"net.weight": weights[:, :2], "net.bias": weights[:, 2]}, structure="full").double()
        guide.fit(model, [(x, y)])
        assert guide.log_evidence() == pytest.approx(evidence, rel=1e-9)
        found = predict_linearized(model, guide, new[:, :2])
        assert isinstance(found, GaussianPrediction)
        torch.testing.assert_close(found.mean, new @ weights.T)
        torch.testing.assert_close(found.epistemic, torch.stack(variance, 1))
        torch.testing.assert_close(found.aleatoric, scales.square().expand(5, 2))
        exact = torch.distributions.Normal(found.mean, (torch.stack(variance, 1) + scales.square()).sqrt())
        torch.testing.assert_close(found.log_prob(y[:5]), exact.log_prob(y[:5]).sum(1))


@pytest.mark.statistical
def test_several_targets_are_jointly_gaussian() -> None:
    """20 000 draws against the closed form; z-score below 5."""
    model, guide, x = fitted(likelihoods.Normal(0.3), torch.randn(16, 2).double(), structure="full")
    found = predict_linearized(model, guide, x[:2], num_samples=20_000)
    assert isinstance(found, GaussianPrediction)
    pyro.set_rng_seed(1)
    centered = (found.sample() - found.mean).flatten(2)
    assert z_of_mean(centered.unsqueeze(-1) * centered.unsqueeze(-2), found.covariance) < Z
    assert bool((found.covariance[:, 0, 1].abs() > 1e-3).any())
    split, own = found.joint_entropy_split(), 2 * torch.distributions.Normal(0.0, 0.3).entropy()
    joint = torch.distributions.MultivariateNormal(found.mean, found.covariance)
    torch.testing.assert_close(split.total, joint.entropy())
    torch.testing.assert_close(split.aleatoric, own.double().expand(2))
    torch.testing.assert_close(split.epistemic, split.total - split.aleatoric)


@pytest.mark.statistical
def test_a_sampled_last_layer_is_the_linearized_one() -> None:
    """Outputs are linear in the last layer: 5000 draws of weights against ``J Σ Jᵀ``; z-scores below 5."""
    model, guide, x = fitted(likelihoods.Normal(0.3), torch.randn(16, 2).double())
    linear = predict_linearized(model, guide, x)
    pyro.set_rng_seed(2)
    draws = predict(model, guide, x, 5000, return_draws=True, seed=2).draws
    assert z_of_mean(draws, linear.mean) < Z
    assert z_of_mean((draws - linear.mean).square(), linear.epistemic) < Z


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (likelihoods.Categorical(), torch.arange(16) % 2),
        (likelihoods.Bernoulli(), (torch.arange(32).reshape(16, 2) % 2).double()),
        (likelihoods.Poisson(), (torch.arange(32).reshape(16, 2) % 3).double()),
        (likelihoods.HeteroscedasticNormal(), torch.randn(16, 1).double()),
    ],
    ids=["classes", "binary", "counts", "heteroscedastic"],
)
def test_sampled_outputs_agree_with_sampled_last_layers(likelihood: Likelihood, y: Tensor) -> None:
    """2000 draws each: means within 5 standard errors of ``predict``'s."""
    model, guide, x = fitted(likelihood, y)
    linear = predict_linearized(model, guide, x, 2000, seed=3)
    sampled = predict(model, guide, x, 2000, return_draws=True, seed=4)
    error = sampled.draws.std(0) * (2.0 / 2000) ** 0.5
    assert float(((linear.mean - sampled.mean).abs() / error).max()) < Z
    torch.testing.assert_close(linear.aleatoric, sampled.aleatoric, rtol=0.1, atol=0.01)
    rtol = 0.5 if isinstance(likelihood, likelihoods.Poisson) else 0.25  # exponentials of Gaussians have heavy tails
    torch.testing.assert_close(linear.epistemic, sampled.epistemic, rtol=rtol, atol=0.01)


@pytest.mark.parametrize("structure", ["last_layer", "full", "kronecker", "diagonal"])
def test_probit(structure: str) -> None:
    """``softmax(f / sqrt(1 + π v / 8))``, and close to the average over outputs it approximates."""
    model, guide, x = fitted(likelihoods.Categorical(), torch.arange(16) % 2, structure)
    guide.optimize_prior_precision()
    found = predict_linearized(model, guide, x, 2000, link="probit", seed=5)
    values = guide.mode()
    hidden = torch.tanh(x @ values["net.0.weight"].T + values["net.0.bias"])
    outputs = hidden @ values["net.2.weight"].T + values["net.2.bias"]
    assert torch.equal(found.mean.argmax(-1), outputs.argmax(-1))
    if structure == "last_layer":
        # Both outputs have the same curvature in magnitude: the variances come from the sampled route.
        draws = guide.sample(50_000)
        spread = torch.einsum("nh,koh->kno", hidden, draws["net.2.weight"]) + draws["net.2.bias"].unsqueeze(1)
        variance = spread.var(0)
        expected = (outputs / (1.0 + math.pi / 8.0 * variance).sqrt()).softmax(-1)
        torch.testing.assert_close(found.mean, expected, rtol=0.01, atol=0.002)
    sampled = predict_linearized(model, guide, x, 4000, link="samples", seed=6)
    torch.testing.assert_close(found.mean, sampled.mean, rtol=0.0, atol=0.06)
    torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)
    assert bool((found.epistemic >= 0).all())


def test_chunks_and_seeds() -> None:
    model, guide, x = fitted(likelihoods.Categorical(), torch.arange(16) % 2)
    state = torch.get_rng_state()
    # The smaller budget holds the draws, and the Jacobians of half of the inputs.
    first, second = (
        predict_linearized(model, guide, x, 20, link="probit", seed=7, max_bytes=m) for m in (2**20, 12_000)
    )
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first.mean, second.mean)
    torch.testing.assert_close(first.aleatoric, second.aleatoric)
    assert len(first) == 16


def test_refusals() -> None:
    model, guide, x = fitted(likelihoods.Categorical(), torch.arange(16) % 2)
    with pytest.raises(ValueError, match="link: expected 'probit' or 'samples', got 'logit'"):
        predict_linearized(model, guide, x, link="logit")
    with pytest.raises(TypeError, match="guide: MAP declares no linearization"):
        predict_linearized(model, MAP(model), x)
    with pytest.raises(TypeError, match="model: expected a SupervisedModel, got Linear"):
        predict_linearized(nn.Linear(2, 2), guide, x)
    with pytest.raises(ValueError, match="x: it holds no inputs"):
        predict_linearized(model, guide, x[:0])
    with pytest.raises(RuntimeError, match="no curvature yet"):
        predict_linearized(model, Laplace(model), x)
    regression, guide, x = fitted(likelihoods.Normal(0.3), torch.randn(16, 2).double())
    found = predict_linearized(regression, guide, x)
    with pytest.raises(ValueError, match=r"y: expected targets of shape \(16, 2\), got \(16,\)"):
        found.log_prob(torch.randn(16))
    with pytest.raises(ValueError, match=r"level: expected a coverage between 0 and 1, got 1\.5"):
        found.interval(1.5)


@pytest.mark.parametrize("structure", ["full", "last_layer"])
def test_products_replace_jacobians_that_do_not_fit(structure: str) -> None:
    """Under a budget for no Jacobian the same draws give the same predictions, by ``J v`` for each of them."""
    model, guide, x = fitted(likelihoods.Categorical(), torch.arange(16) % 2, structure)
    for return_draws in (False, True):
        predictor = LinearizedPredictor(model, guide, PredictorOptions(20, return_draws=return_draws, seed=3))
        by_jacobian = predictor(x)
        predictor.derivatives.max_bytes = 1
        by_product = predictor(x)
        torch.testing.assert_close(by_product.mean, by_jacobian.mean)
        torch.testing.assert_close(by_product.epistemic, by_jacobian.epistemic)


def test_a_composite_of_one_part_is_linearized_as_the_part() -> None:
    model, guide, x = fitted(likelihoods.Normal(0.3), torch.randn(16, 2).double(), structure="full")
    whole = Composite(model, [("*", partial(Laplace, structure="full"))]).double()
    whole.parts[0].load_state_dict(guide.state_dict())
    torch.testing.assert_close(predict(model, whole, x).total, predict(model, guide, x).total)


def test_predictions_under_inference_mode() -> None:
    model, guide, x = fitted(likelihoods.Normal(0.3), torch.randn(16, 2).double(), structure="full")
    with torch.inference_mode():
        found = predict(model, guide, x * 1.0)
    torch.testing.assert_close(found.total.clone(), predict(model, guide, x).total)
