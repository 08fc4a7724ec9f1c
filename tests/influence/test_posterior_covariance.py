"""Covariances of losses under draws: conjugate regression in closed form, chains, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrobnn import guides, influence
from pyrobnn.guides import Chains, Laplace, MeanField
from tests.influence.problems import Problem, regression

DRAWS = 20_000


def exact_posterior(own: Problem) -> Laplace:
    return Laplace(own.model, init=own.guide, structure="full").fit(own.model, own.loader)


def curved(own: Problem, precision: Tensor, noise: float) -> Tensor:
    """What the covariance of two quadratic losses has beyond the product of their slopes, ``½ (φ_t Σ φ_n / σ²)²``."""
    train, test = (torch.cat([x, x.new_ones(len(x), 1)], 1) for x in (own.x, own.test_x))
    return 0.5 * (test @ torch.linalg.solve(precision, train.T) / noise**2).square()


def test_it_is_the_hessian_form_and_a_known_rest_on_conjugate_regression() -> None:
    """20,000 draws of the exact posterior: 150 z-scores with a standard deviation near 1 and none above 5."""
    exact, own = regression()
    method = influence.PosteriorCovariance(own.model, exact_posterior(own), own.loader, num_samples=DRAWS)
    classical = influence.Exact(own.model, own.guide, own.loader).upweighting(own.test_x, own.test_y)
    expected = classical - curved(own, exact.precision, exact.noise)
    z = (method.upweighting(own.test_x, own.test_y) - expected) / method.standard_error(own.test_x, own.test_y)
    assert 0.7 < float(z.std()) < 1.4 and float(z.abs().max()) < 5.0


def test_the_rest_vanishes_with_more_data() -> None:
    """At N = 30 and 1,000 its share of the largest influence, in closed form; draws at N = 1,000 see the rest only."""
    shares = []
    for count in (30, 1000):
        exact, own = regression(count)
        classical = influence.Exact(own.model, own.guide, own.loader).upweighting(own.test_x, own.test_y)
        rest = curved(own, exact.precision, exact.noise)
        shares.append(float(rest.max() / classical.abs().max()))
    assert shares[1] < shares[0] / 20
    method = influence.PosteriorCovariance(own.model, exact_posterior(own), own.loader, num_samples=1000)
    found = method.upweighting(own.test_x, own.test_y)
    z = (found - classical + rest) / method.standard_error(own.test_x, own.test_y)
    assert float(z.abs().max()) < 5.5


def test_perturbation_has_the_hessian_form_and_the_same_rest() -> None:
    """A central difference of the closed-form expected loss, E L = ½ (r² + φᵀ Σ φ) / σ²; 2,000 draws."""
    exact, own = regression()
    method = influence.PosteriorCovariance(own.model, exact_posterior(own), own.loader, num_samples=2000)
    test = torch.cat([own.test_x, own.test_x.new_ones(5, 1)], 1)

    def expected_loss(step: float) -> Tensor:
        features = exact.features.clone()
        features[25, 1] += step
        prior = torch.eye(4).double() / exact.prior_scale**2
        covariance = torch.linalg.inv(features.T @ features / exact.noise**2 + prior)
        mean = covariance @ features.T @ own.y[:, 0] / exact.noise**2
        spread = (test @ covariance * test).sum(1)
        return 0.5 * ((test @ mean - own.test_y[:, 0]).square() + spread) / exact.noise**2

    expected = (expected_loss(1e-5) - expected_loss(-1e-5)) / 2e-5
    found = method.perturbation(own.test_x, own.test_y, [25])[:, 0, 1]
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.15 * float(expected.abs().max()))


def test_errors_are_those_of_repeated_runs() -> None:
    """40 runs of 200 draws: the spread of their results over the mean standard error, within 25 % on average."""
    _, own = regression()
    posterior = exact_posterior(own)

    def run(seed: int) -> influence.PosteriorCovariance:
        return influence.PosteriorCovariance(own.model, posterior, own.loader, num_samples=200, seed=seed)

    methods = [run(seed) for seed in range(40)]
    found = torch.stack([method.upweighting(own.test_x, own.test_y) for method in methods])
    errors = torch.stack([method.standard_error(own.test_x, own.test_y) for method in methods])
    assert 0.75 < float((found.std(0) / errors.mean(0)).mean()) < 1.25


def test_chains_of_correlated_draws_have_larger_errors() -> None:
    """An autoregression of coefficient 0.9: products have (1 + 0.81) / (1 - 0.81) times the variance of their mean."""
    _, own = regression()
    posterior = exact_posterior(own)
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(2, 2000, 4, generator=generator, dtype=torch.float64)
    states = [steps[:, 0]]
    for index in range(1, 2000):
        states.append(0.9 * states[-1] + (1 - 0.81) ** 0.5 * steps[:, index])
    lower = torch.linalg.cholesky(torch.linalg.inv(regression()[0].precision))
    flat = regression()[0].mean + torch.stack(states, 1) @ lower.T
    chains = Chains.from_draws(own.model, {"net.weight": flat[..., :3].unsqueeze(2), "net.bias": flat[..., 3:]})
    method = influence.PosteriorCovariance(own.model, chains, own.loader)
    assert method.num_samples == 4000
    alone = influence.PosteriorCovariance(own.model, posterior, own.loader, num_samples=4000)
    x, y = own.test_x, own.test_y
    ratio = method.standard_error(x, y) / alone.standard_error(x, y)
    assert 2.0 < float(ratio.mean()) < 4.5  # 3.09, from batches of 44 draws
    z = (method.upweighting(x, y) - alone.upweighting(x, y)) / method.standard_error(x, y)
    assert float(z.abs().max()) < 6.0
    few = influence.PosteriorCovariance(own.model, chains, own.loader, num_samples=100)
    assert few.num_samples == 100 and few.standard_error(x, y).shape == (5, 30)


def test_draws_in_a_dict_are_a_posterior() -> None:
    _, own = regression()
    draws = dict(exact_posterior(own).sample(50))
    method = influence.PosteriorCovariance(own.model, draws, own.loader)
    assert method.num_samples == 50
    centered = method.losses - method.losses.mean(0)
    torch.testing.assert_close(method.upweighting(own.x, own.y), -(centered.T @ centered) / 49)


def test_what_it_cannot_do_is_refused() -> None:
    _, own = regression()
    with pytest.raises(ValueError, match=r"^guide: a MAP is a point"):
        influence.PosteriorCovariance(own.model, own.guide, own.loader)
    with pytest.raises(ValueError, match=r"^num_samples: 9 were requested, but the guide consists of 4 points"):
        influence.PosteriorCovariance(own.model, guides.DeltaMixture(own.model, 4), own.loader, num_samples=9)
    with pytest.raises(ValueError, match=r"^guide: a covariance needs at least two draws"):
        influence.PosteriorCovariance(own.model, dict(MeanField(own.model).sample(1)), own.loader)
    with pytest.raises(TypeError, match=r"^guide: "):
        influence.PosteriorCovariance(own.model, 3, own.loader)  # type: ignore[arg-type]
