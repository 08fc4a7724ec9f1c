"""The mean-field guide: the conformance suite, and truth in closed form."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrobnn.guides import MeanField
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import Normal
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_suite import GuideConformance
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.guides.test_base import Sites


class TestMeanFieldConformance(GuideConformance):
    """What every guide must do."""

    def make_guide(self, model: nn.Module, **options: Any) -> MeanField:
        return MeanField(model, **options)


def scattered(guide: MeanField) -> MeanField:
    """Random means, scales between 0.2 and 0.6; in double precision."""
    guide.double()
    with torch.no_grad():
        guide.flat_loc.normal_()
        guide.flat_log_scale.uniform_(-1.5, -0.5)
    return guide


def fit(model: nn.Module, guide: MeanField, data: tuple[Tensor, Tensor], steps: int) -> None:
    """Adam, its learning rate falling from 0.1 to 0.005; the result is the average over the last half of the steps."""
    elbo = ELBO()
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps // 2)
    average = torch.optim.swa_utils.AveragedModel(nn.ParameterList(guide.parameters()))
    for step in range(steps):
        optimizer.zero_grad()
        elbo.loss_and_grads(model, guide, *data)
        optimizer.step()
        schedule.step()
        if step >= steps // 2:
            average.update_parameters(nn.ParameterList(guide.parameters()))
    with torch.no_grad():
        for parameter, mean in zip(guide.parameters(), average.module, strict=True):
            parameter.copy_(mean)


def kl_to(guide: MeanField, draws: Draws, prior: dist.Distribution) -> Divergence:
    """The guide's divergence where ``w`` is the only site."""
    return guide.divergence(draws, {"w": PriorTerm(prior)})


# ----------------------------------------------------------------------------- density, KL, starting scale


def test_starts_at_the_given_scale() -> None:
    guide = MeanField(Sites(w=dist.Normal(0.0, 1.0).expand([3]).to_event(1)), example=(), init_scale=0.05)
    torch.testing.assert_close(guide.flat_log_scale.exp(), torch.full((3,), 0.05))
    assert [id(p) for p in guide.scale_parameters()] == [id(dict(guide.named_parameters())["log_scale"])]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="init_scale: expected a positive standard deviation"):
        MeanField(Sites(w=dist.Normal(0.0, 1.0)), example=(), init_scale=scale)


def test_log_prob_is_the_product_of_normal_and_log_normal_densities() -> None:
    model = Sites(s=dist.HalfCauchy(1.0), w=dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    guide = scattered(MeanField(model, example=()))
    loc, scale = guide.layout.split(guide.flat_loc), guide.layout.split(guide.flat_log_scale.exp())
    draws = {"w": torch.randn(5, 2, 3).double(), "s": torch.rand(5).double() + 0.1}
    expected = dist.Normal(loc["w"], scale["w"]).log_prob(draws["w"]).sum((1, 2))
    expected = expected + dist.LogNormal(loc["s"], scale["s"]).log_prob(draws["s"])
    torch.testing.assert_close(guide.log_prob(draws), expected)


REGISTERED = {
    "Normal": dist.Normal(0.3, 2.0),
    "Laplace": dist.Laplace(0.3, 2.0),
    "Gumbel": dist.Gumbel(0.3, 2.0),
    "LogNormal": dist.LogNormal(0.3, 2.0),
    "LogitNormal": dist.TransformedDistribution(dist.Normal(0.3, 2.0), [torch.distributions.SigmoidTransform()]),
}


def counterpart(prior: dist.Distribution, loc: Tensor, scale: Tensor) -> dist.Distribution:
    """The Gaussian on the prior's support, as a user of ``torch.distributions`` would write it."""
    if isinstance(prior, dist.LogNormal):
        return dist.LogNormal(loc, scale)
    if isinstance(prior, dist.TransformedDistribution):
        return dist.TransformedDistribution(dist.Normal(loc, scale), prior.transforms)
    return dist.Normal(loc, scale)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("prior", REGISTERED.values(), ids=REGISTERED.keys())
def test_kl_is_torchs_closed_form(prior: dist.Distribution, shape: tuple[int, ...]) -> None:
    full = prior.expand(shape)
    guide = scattered(MeanField(Sites(w=full.to_event()), example=()))
    found = kl_to(guide, guide.rsample(), guide.layout["w"].prior)
    loc, scale = (guide.layout.split(flat)["w"] for flat in (guide.flat_loc, guide.flat_log_scale.exp()))
    assert found.exact
    expected = kl_divergence(counterpart(full, loc, scale), full).sum()
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.by_site["w"], expected)


@pytest.mark.statistical
@pytest.mark.parametrize("prior", REGISTERED.values(), ids=REGISTERED.keys())
def test_registered_kl_is_the_expected_log_ratio(prior: dist.Distribution) -> None:
    """20 000 draws; z-score below 5."""
    guide = scattered(MeanField(Sites(w=prior), example=()))
    draws = guide.sample(20_000)
    log_ratio = guide.log_prob(draws) - prior.log_prob(draws["w"])
    found = kl_to(guide, draws.at(0), prior)
    assert found.exact
    assert z_of_mean(log_ratio.detach(), found.total.detach()) < Z


@pytest.mark.statistical
@pytest.mark.parametrize("prior", [dist.HalfCauchy(1.0), dist.Gamma(2.0, 3.0), dist.StudentT(5.0, 0.0, 1.0)], ids=str)
def test_sampled_kl_is_the_integral(prior: dist.Distribution) -> None:
    """1500 draws where no closed form exists, against quadrature in unconstrained space; z-score below 5."""
    guide = scattered(MeanField(Sites(w=prior), example=()))
    found = [kl_to(guide, guide.rsample(), prior) for _ in range(1500)]
    assert not any(divergence.exact for divergence in found)
    loc, scale = guide.flat_loc.detach(), guide.flat_log_scale.detach().exp()
    u = torch.linspace(-12.0, 12.0, 20_001, dtype=torch.float64)
    q = dist.Normal(0.0, 1.0).log_prob(u).exp() / scale
    value = guide.layout.constrain({"w": loc + scale * u})["w"]
    log_ratio = guide.log_prob({"w": value}) - prior.log_prob(value)
    integral = torch.trapezoid(q * log_ratio, loc + scale * u)
    assert z_of_mean(torch.stack([divergence.total for divergence in found]).detach(), integral.detach()) < Z


# ------------------------------------------------------------------------------------------- the posterior


@pytest.mark.statistical
@pytest.mark.parametrize("antithetic", [True, False])
def test_fit_reaches_the_best_factorized_posterior(antithetic: bool) -> None:
    """Means within 2 % of the exact posterior's, variances within 5 % of 1 / Λᵢᵢ.

    One network with 256 outputs that are all asked the same: as many independent fits, averaged. The standard
    error of an averaged variance is below 1 %.
    """
    data, fits = ConjugateRegression(), 256
    prior = dist.Normal(0.0, data.prior_scale)
    net = nn.Linear(data.dim, fits)
    model = SupervisedModel(net, Normal(data.noise), prior, num_data=data.num_data).double()
    guide = MeanField(model, antithetic=antithetic).double()
    fit(model, guide, (data.x, data.y.expand(-1, fits)), steps=600)
    loc, scale = guide.layout.split(guide.flat_loc.detach()), guide.layout.split(guide.flat_log_scale.detach().exp())
    mean = torch.cat([loc["net.weight"].mean(0), loc["net.bias"].mean(0, keepdim=True)])
    variance = torch.cat([scale["net.weight"].square().mean(0), scale["net.bias"].square().mean(0, keepdim=True)])
    torch.testing.assert_close(mean, data.mean, rtol=0.02, atol=0.0)
    torch.testing.assert_close(variance, data.mean_field_variance, rtol=0.05, atol=0.0)
    marginal = torch.linalg.inv(data.precision).diagonal()
    assert bool((variance[:2] < 0.8 * marginal[:2]).all())  # mean field is narrower than the posterior's marginals


@pytest.mark.statistical
@pytest.mark.parametrize("antithetic", [True, False])
def test_gradient_is_the_closed_form(antithetic: bool) -> None:
    r"""Away from the optimum: ``Λ(μ - m)`` and ``Λᵢᵢσᵢ² - 1``; 400 pairs of draws, z-score below 5."""
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model, antithetic=antithetic)
    with torch.no_grad():
        guide.flat_loc.add_(0.3)
        guide.flat_log_scale.sub_(0.4)
    elbo, rows = ELBO(num_particles=2), []
    for _ in range(400):
        guide.zero_grad()
        elbo.loss_and_grads(model, guide, data.x, data.y)
        rows.append(torch.stack([guide.flat_loc.grad, guide.flat_log_scale.grad]))
    by_loc = data.precision @ (guide.flat_loc.detach() - data.mean)
    by_log_scale = data.precision.diagonal() * guide.flat_log_scale.detach().mul(2).exp() - 1.0
    draws = torch.stack(rows)
    assert z_of_mean(draws, torch.stack([by_loc, by_log_scale])) < Z
    noise = draws[:, 0].std(0) / by_loc.abs()
    assert (
        bool((noise < 1e-9).all()) == antithetic
    )  # a mirrored pair cancels first-order noise: the log joint is quadratic


class Scaled(nn.Module):
    """Each output is one weight: the posterior of the weights is factorized."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@pytest.mark.statistical
def test_simulation_based_calibration() -> None:
    """Ranks of 1000 prior draws among 99 posterior draws each: uniform (χ² of 10 bins, p > 0.001).

    The posterior of a diagonal model is factorized and Gaussian, so mean field is exact (Talts et al. 2018).
    """
    size, num_data, noise = 1000, 4, 0.8
    truth = torch.randn(size)
    x = torch.rand(num_data, size) + 0.5
    y = x * truth + noise * torch.randn(num_data, size)
    model = SupervisedModel(Scaled(size), Normal(noise), dist.Normal(0.0, 1.0), num_data=num_data)
    guide = MeanField(model, init_scale=0.5)
    fit(model, guide, (x, y), steps=400)
    draws = guide.sample(99)["net.weight"]
    ranks = (draws < truth).sum(0)
    counts = torch.bincount(ranks // 10, minlength=10)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
