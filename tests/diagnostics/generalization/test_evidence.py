"""Log evidences against the closed form of conjugate linear regression."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import guides
from pyrobnn.diagnostics.generalization import annealed_importance_sampling, evidence_estimates

N, D, NOISE = 12, 3, 0.5
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=GENERATOR, dtype=torch.float64)
Y = X @ torch.tensor([[1.0], [-0.5], [0.2]], dtype=torch.float64) + NOISE * torch.randn(
    N, 1, generator=GENERATOR, dtype=torch.float64
)


def conjugate() -> pb.SupervisedModel:
    net = nn.Linear(D, 1, bias=False).double()
    return pb.SupervisedModel(net, pb.likelihoods.Normal(NOISE), dist.Normal(0.0, 1.0), num_data=N)


def exact_evidence() -> float:
    covariance = X @ X.T + NOISE**2 * torch.eye(N, dtype=torch.float64)
    return float(torch.distributions.MultivariateNormal(torch.zeros(N).double(), covariance).log_prob(Y[:, 0]))


def exact_posterior() -> tuple[Tensor, Tensor]:
    precision = X.T @ X / NOISE**2 + torch.eye(D, dtype=torch.float64)
    covariance = precision.inverse()
    return covariance @ (X.T @ Y / NOISE**2)[:, 0], covariance


def test_annealing_finds_the_evidence_in_both_directions() -> None:
    """z ≤ 4 with 64 chains of 60 temperatures, and both errors below 0.4 nats."""
    model, exact = conjugate(), exact_evidence()
    forward = annealed_importance_sampling(model, X, Y, num_chains=64, num_temperatures=60, seed=1)
    mean, covariance = exact_posterior()
    torch.manual_seed(2)
    draws = torch.distributions.MultivariateNormal(mean, covariance).sample((64,)).unsqueeze(1)
    backward = annealed_importance_sampling(model, X, Y, num_temperatures=60, posterior={"net.weight": draws}, seed=3)
    for found in (forward, backward):
        assert 0.0 < found.standard_error < 0.4
        assert abs(found.log_evidence - exact) < 4 * found.standard_error
        assert 0.5 < found.acceptance < 1.0
        assert found.effective_samples > 5
    assert float(forward.log_weights.mean()) < exact < float(backward.log_weights.mean())
    assert "lower bound" in str(forward)
    assert "upper bound" in str(backward)


def test_without_temperatures_annealing_is_importance_sampling_from_the_prior() -> None:
    """One temperature: weights are likelihoods at draws of the prior. z ≤ 4."""
    found = annealed_importance_sampling(conjugate(), X, Y, num_chains=2_000, num_temperatures=1, step_size=0.1, seed=4)
    assert abs(found.log_evidence - exact_evidence()) < 4 * found.standard_error
    again = annealed_importance_sampling(conjugate(), X, Y, num_chains=2_000, num_temperatures=1, step_size=0.1, seed=4)
    assert torch.equal(found.log_weights, again.log_weights)


def test_sites_on_the_positive_reals_have_their_jacobian() -> None:
    """A learned noise scale, against the evidence integrated over a grid of scales. z ≤ 4."""

    model = pb.SupervisedModel(
        nn.Linear(D, 1, bias=False).double(),
        pb.likelihoods.Normal(dist.LogNormal(torch.tensor(-0.5).double(), torch.tensor(0.5).double())),
        dist.Normal(0.0, 1.0),
        num_data=N,
    )
    prior = dist.LogNormal(torch.tensor(-0.5).double(), torch.tensor(0.5).double())
    scales = torch.linspace(-3.0, 2.0, 2_001, dtype=torch.float64).exp()
    covariances = X @ X.T + scales.square()[:, None, None] * torch.eye(N, dtype=torch.float64)
    zero = torch.zeros(N, dtype=torch.float64)
    scores = torch.distributions.MultivariateNormal(zero, covariances).log_prob(Y[:, 0])
    exact = float((scores + prior.log_prob(scales) + scales.log()).logsumexp(0)) + math.log(5.0 / 2_000)
    found = annealed_importance_sampling(model, X, Y, num_chains=64, num_temperatures=60, seed=5)
    assert abs(found.log_evidence - exact) < 4 * found.standard_error


def test_all_estimates_agree_where_the_posterior_is_gaussian() -> None:
    model, exact = conjugate(), exact_evidence()
    mean, covariance = exact_posterior()
    point = guides.MAP(model, init={"net.weight": mean[None]})
    laplace = guides.Laplace(model, init=point, structure="full").fit(model, [(X, Y)])
    guide = guides.LowRankNormal(model, rank=D)
    mean_field = guides.MeanField(model)
    with torch.no_grad():
        mean_field.flat_loc.copy_(mean)
        mean_field.flat_log_scale.copy_(-0.5 * covariance.inverse().diagonal().log())
    annealed = annealed_importance_sampling(model, X, Y, num_chains=32, num_temperatures=40, seed=6)
    torch.manual_seed(7)
    found = evidence_estimates(model, X, Y, laplace=laplace, guide=mean_field, annealed=annealed, num_samples=4_000)
    assert list(found) == ["Laplace", "ELBO", "importance weighted", "annealed"]
    assert found["Laplace"].value == pytest.approx(exact, abs=1e-6)
    precision = covariance.inverse()
    kl = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))  # of the best mean field
    elbo = found["ELBO"]
    assert abs(elbo.value - (exact - kl)) < 4 * elbo.standard_error
    weighted = found["importance weighted"]
    assert abs(weighted.value - exact) < 4 * weighted.standard_error
    assert elbo.value < weighted.value
    assert str(found["Laplace"]).endswith("(approximation)")
    assert set(evidence_estimates(model, X, Y, guide=guide, num_samples=10)) == {"ELBO", "importance weighted"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_chains": 0}, "^num_chains: "),
        ({"num_temperatures": 0}, "^num_temperatures: "),
        ({"step_size": -1.0}, "^step_size: "),
        ({"posterior": {"net.weight": torch.zeros(2, 1, 4).double()}}, "^posterior: its site"),
    ],
)
def test_bad_arguments_of_annealing(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        annealed_importance_sampling(conjugate(), X, Y, **options)


def test_what_has_no_evidence_is_refused() -> None:
    model = conjugate()
    with pytest.raises(ValueError, match=r"^guide: nothing to estimate by"):
        evidence_estimates(model, X, Y)
    with pytest.raises(ValueError, match=r"^guide: MAP has no density"):
        evidence_estimates(model, X, Y, guide=guides.MAP(model))
    with pytest.raises(ValueError, match=r"^data: the evidence needs all 12 data"):
        evidence_estimates(model, X[:5], Y[:5], guide=guides.MeanField(model))
    with pytest.raises(ValueError, match=r"^laplace: it is no distribution"):
        evidence_estimates(model, X, Y, laplace=guides.Laplace(model, structure="full"))
    with pytest.raises(ValueError, match=r"^data: expected the model's arguments"):
        annealed_importance_sampling(model)
    with pytest.raises(TypeError, match=r"^model: function does not draw its latent sites"):
        annealed_importance_sampling(lambda x: x, X)
