"""Tuned priors: linear regression, whose evidence is known, and a prior too narrow for its data."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from pyrobnn import likelihoods, priors, tune_prior
from pyrobnn.model.supervised import SupervisedModel

NOISE = 0.5
NORMAL = dist.Normal(0.0, 1.0)


def regression(num_data: int = 30, dims: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_data, dims, generator=generator, dtype=torch.float64)
    truth = 0.2 * torch.randn(dims, 1, generator=generator, dtype=torch.float64)
    return x, x @ truth + NOISE * torch.randn(num_data, 1, generator=generator, dtype=torch.float64)


def line(prior: object, num_data: int = 30) -> SupervisedModel:
    net = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    return SupervisedModel(net, likelihoods.Normal(NOISE), prior, num_data=num_data)  # type: ignore[arg-type]


@pytest.mark.parametrize("structure", ["kronecker", "full"])
def test_linear_regression_is_tuned_to_the_maximum_of_its_evidence(structure: str) -> None:
    """``y ~ N(0, σ² I + s² X Xᵀ)``; the optimum over s by scipy."""
    x, y = regression()

    def evidence(scale: float) -> float:
        covariance = NOISE**2 * torch.eye(30) + scale**2 * x @ x.T
        return float(multivariate_normal(cov=covariance.numpy()).logpdf(y[:, 0].numpy()))

    best = minimize_scalar(lambda log: -evidence(math.exp(log)), bounds=(-4.0, 2.0), method="bounded")
    model = line(dist.Normal(0.0, 2.0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = tune_prior(model, [(x, y)], structure=structure, epochs=150, lr=0.05, rounds=5)  # type: ignore[arg-type]
    assert found.before == pytest.approx(evidence(2.0), abs=1e-3)
    assert min(abs(trial - evidence(1.0)) for trial in found.log_evidence) < 1e-3
    assert found.after == pytest.approx(-best.fun, abs=2e-3)
    assert float(found.scales["weight"]) == pytest.approx(math.exp(best.x), rel=0.03)
    tuned = found.model.net.site_priors["weight"].distribution.base_dist
    assert float(tuned.scale.reshape(-1)[0]) == pytest.approx(float(found.scales["weight"]))
    assert f"{found.after:.2f} after" in str(found)
    assert not found.model.has_default_prior
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    again = SupervisedModel(nn.Linear(4, 1, bias=False), likelihoods.Normal(NOISE), found.prior, num_data=30)
    assert list(again.net.site_priors) == ["weight"]


def test_layers_have_scales_of_their_own_and_deterministic_parameters_stay_so() -> None:
    x = torch.linspace(-1.0, 1.0, 40)[:, None]
    net = nn.Sequential(nn.Linear(1, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))
    model = SupervisedModel(net, likelihoods.Normal(0.2), priors.he(), num_data=40)
    found = tune_prior(model, [(x, x.sin())], epochs=100, rounds=1, seed=0)
    assert set(found.model.net.site_priors) == set(model.net.site_priors)
    assert all(scale.shape == () for scale in found.scales.values())
    assert found.after >= found.before
    shared = tune_prior(model, [(x, x.sin())], epochs=100, rounds=1, per_layer=False, seed=0)
    assert set(shared.scales) == set(found.scales)


def test_a_prior_too_narrow_is_widened() -> None:
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + x[:, 1].square() > 0.7).long()
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 0.05), num_data=100)
    found = tune_prior(model, [(x, y)], epochs=200, rounds=1, lr=0.02, seed=0)
    assert found.after > found.before + 10.0
    assert all(float(scale) > 0.2 for scale in found.scales.values())


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (dist.Laplace(0.0, 1.0), "prior of 'weight': only Normal priors of fixed scale can be tuned, got Laplace"),
        (priors.learned_scale(), "prior of 'weight': only Normal priors of fixed scale can be tuned, got Learned"),
        (priors.horseshoe(), "prior of 'weight': only Normal priors of fixed scale can be tuned, got Horseshoe"),
    ],
)
def test_other_priors_are_refused(prior: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune_prior(line(prior), [regression()], epochs=2)


def test_what_has_no_evidence_is_refused() -> None:
    x, y = regression()
    with pytest.raises(ValueError, match="num_data: a prior cannot be tuned on one datum"):
        tune_prior(line(NORMAL, num_data=1), [(x[:1], y[:1])])
    with pytest.raises(TypeError, match="model: expected a SupervisedModel, got Linear"):
        tune_prior(nn.Linear(1, 1), [(x, y)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="structure: expected 'kronecker', 'diagonal' or 'full', got 'last_layer'"):
        tune_prior(line(NORMAL), [(x, y)], structure="last_layer")  # type: ignore[arg-type]
    masked = SupervisedModel(nn.Linear(4, 1), likelihoods.Normal(NOISE, missing=True), NORMAL, num_data=30)
    with pytest.raises(ValueError, match="missing"):
        tune_prior(masked, [(x.float(), y.float())], epochs=2)
