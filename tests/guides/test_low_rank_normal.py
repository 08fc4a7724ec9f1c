"""The low-rank Gaussian guide: the conformance suite, its KL in closed form, and exact posteriors."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrobnn import likelihoods
from pyrobnn.diagnostics.weights import weight_statistics
from pyrobnn.guides import LowRankNormal, MeanField
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.reporting.description import describe
from pyrobnn.steps import AutogradStep, Step
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_suite import GuideConformance
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.guides.test_base import Sites


class TestLowRankNormalConformance(GuideConformance):
    """What every guide must do."""

    is_joint = True

    def make_guide(self, model: nn.Module, **options: Any) -> LowRankNormal:
        return LowRankNormal(model, rank=3, **options)


def scattered(guide: LowRankNormal) -> LowRankNormal:
    """Random means, scales between 0.2 and 0.6, a factor of the same size; in double precision."""
    guide.double()
    with torch.no_grad():
        guide.flat_loc.normal_()
        guide.flat_log_scale.uniform_(-1.5, -0.5)
        guide.flat_cov_factor.normal_(0.0, 0.4)
    return guide


def of(rank: int = 2, **priors: dist.Distribution) -> LowRankNormal:
    return scattered(LowRankNormal(Sites(**priors), rank=rank, example=()))


def covariance(guide: LowRankNormal) -> Tensor:
    factor = guide.flat_cov_factor.detach()
    return factor @ factor.T + torch.diag(guide.flat_log_scale.detach().mul(2).exp())


def dense(guide: LowRankNormal) -> dist.MultivariateNormal:
    """The guide's distribution of the flat vector, its covariance written out."""
    return dist.MultivariateNormal(guide.flat_loc.detach(), covariance(guide))


def kl_to_prior(guide: LowRankNormal, draws: Draws | None = None) -> Divergence:
    """The guide's divergence of one draw from the priors of its sites."""
    priors = {name: PriorTerm(site.prior) for name, site in guide.layout.items()}
    return guide.divergence(guide.rsample() if draws is None else draws, priors)


class Cubature(LowRankNormal):
    """Draws at ``±√(d + r)`` along each axis of (ε, z) in turn: together they integrate a quadratic exactly.

    So does the log joint of a linear regression become its exact expectation, and the fit a deterministic one.
    """

    turn = 0

    @property
    def num_nodes(self) -> int:
        """Number of draws that integrate exactly."""
        return 2 * (self.layout.size + self.rank)

    def step(self, model: Any, estimators: Any = None, *, sequential: bool = True, vectorize: bool = True) -> Step:
        return AutogradStep(self.layout, self.rsample, self.divergence)

    def rsample(self, noise: Tensor | None = None) -> Draws:
        size = self.num_nodes // 2
        noise = torch.zeros(size, dtype=self.flat_loc.dtype)
        noise[self.turn % size] = size**0.5 * (1.0 - 2.0 * (self.turn // size % 2))
        self.turn += 1
        return super().rsample(noise)


def fitted(data: ConjugateRegression, rank: int) -> tuple[LowRankNormal, float]:
    """The guide at its optimum, and the ELBO there."""
    model = data.model()
    guide = Cubature(model, rank=rank, init_scale=0.1).double()
    elbo = ELBO(num_particles=guide.num_nodes)
    optimizer = torch.optim.LBFGS(
        guide.parameters(), max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        return elbo.loss_and_grads(model, guide, data.x, data.y)

    with pyro.validation_enabled(False):
        optimizer.step(closure)
        return guide, -elbo.loss(model, guide, data.x, data.y)


# ----------------------------------------------------------------------------------------- density and draws

TWO_SITES = {
    "w": dist.Normal(0.5, 2.0).expand([2, 3]).to_event(2),
    "b": dist.Normal(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])).to_event(1),
}


def test_log_prob_is_that_of_the_dense_normal() -> None:
    guide = of(s=dist.HalfCauchy(1.0), **TWO_SITES)
    draws = guide.sample(7)
    flat = torch.cat([draws["s"].log().unsqueeze(-1), draws["w"].reshape(7, -1), draws["b"]], -1)
    expected = dense(guide).log_prob(flat) - draws["s"].log()
    torch.testing.assert_close(guide.log_prob(draws), expected, rtol=1e-10, atol=1e-10)
    single = guide.float()
    found = single.log_prob({name: value.float() for name, value in draws.items()})
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.statistical
def test_draws_have_the_mean_and_the_covariance() -> None:
    """20 000 draws in bulk, 4000 one by one; z-scores of the mean and of all covariances below 5."""
    guide = of(**TWO_SITES)
    with torch.no_grad():
        single = torch.stack([guide.layout.join(guide.rsample()) for _ in range(4000)])
    bulk = guide.sample(20_000)
    for draws in (torch.cat([bulk["w"].reshape(-1, 6), bulk["b"]], -1), single):
        centered = draws - guide.flat_loc.detach()
        assert z_of_mean(draws, guide.flat_loc.detach()) < Z
        assert z_of_mean(centered.unsqueeze(-1) * centered.unsqueeze(-2), covariance(guide)) < Z


def test_factor_is_the_sites_marginal() -> None:
    guide = of(s=dist.LogNormal(0.0, 1.0).expand([2]).to_event(1), **TWO_SITES)
    for name in ("w", "b"):
        site = guide.layout[name]
        window = site.window
        block = dist.MultivariateNormal(guide.flat_loc[window], covariance(guide)[window, window])
        value = torch.randn(4, *site.shape).double()
        factor = guide.marginal(site.name)
        torch.testing.assert_close(factor.log_prob(value), block.log_prob(value.reshape(4, -1)))
        torch.testing.assert_close(guide.elementwise_marginal(site.name).variance.reshape(-1), block.variance)
        assert factor.event_shape == site.shape
    site = guide.layout["s"]
    window = site.window
    block = dist.MultivariateNormal(guide.flat_loc[window], covariance(guide)[window, window])
    value = torch.rand(4, 2).double() + 0.1
    torch.testing.assert_close(
        guide.marginal(site.name).log_prob(value), block.log_prob(value.log()) - value.log().sum(-1)
    )


def test_describe_names_family_and_exactness() -> None:
    noise = likelihoods.Normal(dist.HalfCauchy(1.0))
    model = SupervisedModel(nn.Linear(3, 2), noise, dist.Normal(0.0, 1.0), num_data=8)
    rows = {row["site"]: row for row in describe(model, LowRankNormal(model)).rows}
    assert (rows["net.weight"]["posterior"], rows["net.weight"]["kl"]) == ("LowRankGaussian", "exact")
    assert rows["likelihood.scale"]["posterior"] == "exp(LowRankGaussian)"
    assert rows["likelihood.scale"]["kl"] == "Monte Carlo"


# ------------------------------------------------------------------------------------------------ divergence


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_divergence_is_torchs_kl_between_dense_normals(rank: int) -> None:
    """Log-normal priors too: the KL is the same in unconstrained space."""
    guide = of(rank, s=dist.LogNormal(0.3, 0.7).expand([2]).to_event(1), **TWO_SITES)
    loc = torch.cat([torch.full((2,), 0.3), torch.full((6,), 0.5), torch.tensor([0.0, 1.0])]).double()
    scale = torch.cat([torch.full((2,), 0.7), torch.full((6,), 2.0), torch.tensor([1.0, 0.5])]).double()
    found = kl_to_prior(guide)
    assert found.exact
    expected = kl_divergence(dense(guide), dist.MultivariateNormal(loc, torch.diag(scale.square())))
    torch.testing.assert_close(found.total, expected, rtol=1e-6, atol=1e-6)  # the priors' parameters are single
    torch.testing.assert_close(found.joint, -dense(guide).entropy())


def test_scale_and_mask_weigh_the_rows_of_the_priors_batch() -> None:
    """Closed form and single draw; masks of rows, and a scale of each row."""
    guide = of(w=dist.Normal(0.0, 1.0).expand([2, 3]).to_event(1), g=dist.Gamma(2.0, 1.0).expand([2, 3]).to_event(1))
    draws = guide.rsample()

    def by_site(**options: Any) -> dict[str, Tensor]:
        return dict(
            guide.divergence(draws, {n: PriorTerm(s.prior, **options) for n, s in guide.layout.items()}).by_site
        )

    whole, first = by_site(), by_site(mask=torch.tensor([True, False]))
    weighed = by_site(scale=torch.tensor([2.0, 5.0]))
    for name in ("w", "g"):
        assert float(first[name].detach()) != float(whole[name].detach())
        torch.testing.assert_close(weighed[name], 5.0 * whole[name] - 3.0 * first[name])


@pytest.mark.statistical
@pytest.mark.parametrize(
    "prior", [dist.Laplace(0.3, 1.5), dist.Gumbel(0.3, 2.0), dist.LogNormal(0.3, 0.7)], ids=lambda p: type(p).__name__
)
def test_registered_cross_entropy_is_the_expected_log_ratio(prior: dist.Distribution) -> None:
    """Correlated elements, 20 000 draws; z-score below 5."""
    guide = of(w=prior.expand([3]).to_event(1), v=prior)
    draws = guide.sample(20_000)
    log_ratio = guide.log_prob(draws) - sum(site.prior.log_prob(draws[site.name]) for site in guide.layout.values())
    kl = kl_to_prior(guide)
    assert kl.exact
    assert z_of_mean(log_ratio.detach(), kl.total.detach()) < Z


@pytest.mark.statistical
@pytest.mark.parametrize("prior", [dist.StudentT(5.0, 0.0, 1.0), dist.Gamma(2.0, 3.0), dist.HalfCauchy(1.0)], ids=str)
def test_sampled_divergence_is_the_integral(prior: dist.Distribution) -> None:
    """One element: quadrature in unconstrained space; 600 draws, z-score below 5."""
    guide = of(1, w=prior)
    found = [kl_to_prior(guide) for _ in range(600)]
    assert not any(kl.exact for kl in found)
    u = torch.linspace(-12.0, 12.0, 20_001, dtype=torch.float64) + guide.flat_loc.detach()
    log_q = dense(guide).log_prob(u.unsqueeze(-1))
    value = guide.layout.constrain({"w": u})["w"]
    log_density = guide.log_prob({"w": value}).detach()
    integral = torch.trapezoid(log_q.exp() * (log_density - prior.log_prob(value)), u)
    assert z_of_mean(torch.stack([kl.total for kl in found]).detach(), integral) < Z


def test_divergence_and_its_gradient_do_not_depend_on_which_draw_is_asked_about() -> None:
    """The moments kept with the last draw, against moments computed anew."""
    guide = of(s=dist.LogNormal(0.0, 1.0), **TWO_SITES)
    found = []
    for draws in (guide.rsample(), guide.sample(1).at(0)):
        kl = kl_to_prior(guide, draws).total
        found.append([kl, *torch.autograd.grad(kl, list(guide.parameters()))])
    for kept, anew in zip(*found, strict=True):
        torch.testing.assert_close(kept, anew)


# -------------------------------------------------------------------------------------------- the posterior


def test_full_rank_optimum_is_the_exact_posterior() -> None:
    """Mean, full covariance and ELBO, all in closed form; mean field is a tenth of a nat and more away."""
    data = ConjugateRegression()
    guide, elbo = fitted(data, rank=data.dim + 1)
    torch.testing.assert_close(guide.flat_loc.detach(), data.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(covariance(guide), torch.linalg.inv(data.precision), rtol=1e-3, atol=1e-5)
    assert elbo == pytest.approx(data.log_evidence, abs=1e-4)
    assert data.gap > 0.1


def test_rank_one_captures_a_correlated_pair() -> None:
    """Slope and intercept of inputs far from the origin: a diagonal plus one column is every 2 × 2 covariance."""
    data = ConjugateRegression(dim=1)
    data.x = data.x + 4.0
    exact = torch.linalg.inv(data.precision)
    assert float(exact[0, 1] / (exact[0, 0] * exact[1, 1]).sqrt()) < -0.9
    guide, elbo = fitted(data, rank=1)
    torch.testing.assert_close(covariance(guide), exact, rtol=1e-3, atol=1e-5)
    assert elbo == pytest.approx(data.log_evidence, abs=1e-4)


def test_rank_one_is_better_than_mean_field() -> None:
    """Four correlated weights: between mean field's ELBO and the log evidence."""
    data = ConjugateRegression()
    _, elbo = fitted(data, rank=1)
    assert data.log_evidence - data.gap < elbo < data.log_evidence - 1e-3


@pytest.mark.statistical
def test_gradient_vanishes_at_the_exact_posterior() -> None:
    """The posterior written as diagonal plus full-rank factor, and random draws.

    ELBO (the log evidence) and gradients (zero) of 800 evaluations; z-scores below 5.
    """
    data = ConjugateRegression()
    model = data.model()
    guide = LowRankNormal(model, rank=data.dim + 1, antithetic=False).double()
    exact = torch.linalg.inv(data.precision)
    diagonal = 0.5 * torch.linalg.eigvalsh(exact)[0]
    with torch.no_grad():
        guide.flat_loc.copy_(data.mean)
        guide.flat_log_scale.fill_(0.5 * diagonal.log())
        guide.flat_cov_factor.copy_(torch.linalg.cholesky(exact - diagonal * torch.eye(data.dim + 1)))
    elbo, rows = ELBO(), []
    for _ in range(800):
        guide.zero_grad()
        loss = elbo.loss_and_grads(model, guide, data.x, data.y)
        rows.append(torch.cat([torch.tensor([loss]), *(p.grad.reshape(-1) for p in guide.parameters())]))
    expected = torch.cat([torch.tensor([-data.log_evidence]), torch.zeros(len(rows[0]) - 1)])
    assert z_of_mean(torch.stack(rows), expected, rounding=1e-7) < Z


# ------------------------------------------------------------------------------------------ size and arguments


def wide(num: int) -> Sites:
    return Sites(w=dist.Normal(0.0, 1.0).expand([num // 100, 100]).to_event(2))


def test_a_big_layer_needs_no_dense_matrix() -> None:
    """Its covariance would take 160 GB; marginal, density, divergence and draws do without."""
    guide = LowRankNormal(wide(200_000), rank=2, example=())
    site = guide.layout["w"]
    draws = guide.sample(2)
    assert guide.log_prob(draws).shape == (2,)
    torch.testing.assert_close(guide.marginal(site.name).log_prob(draws["w"]), guide.log_prob(draws))
    kl = kl_to_prior(guide)
    kl.total.backward()
    assert kl.exact and all(p.grad is not None and bool(p.grad.isfinite().all()) for p in guide.parameters())


@pytest.mark.statistical
def test_starts_at_the_given_scale() -> None:
    """Variances average to ``init_scale²`` over 2000 elements of rank 10: relative error below 5 standard errors.

    Half of each is fixed, the other half a scaled χ² of 10 degrees of freedom with relative deviation √(2/10).
    """
    guide = LowRankNormal(wide(2000), init_scale=0.05, example=())
    mean = float(guide.joint().variance.mean().detach()) / 0.05**2
    assert abs(mean - 1.0) < 5 * 0.5 * (2 / 10 / 2000) ** 0.5
    assert [id(p) for p in guide.scale_parameters()] == [id(dict(guide.named_parameters())["log_scale"])]


@pytest.mark.parametrize(("asked", "rank"), [(1, 1), (10, 10), (500, 200)])
def test_rank_is_at_most_the_dimension(asked: int, rank: int) -> None:
    guide = LowRankNormal(wide(200), asked, example=())
    assert guide.flat_cov_factor.shape == (200, rank)
    assert guide.config()["rank"] == rank


def test_the_default_rank_is_small() -> None:
    assert LowRankNormal(wide(200), example=()).rank == 10
    assert LowRankNormal(Sites(w=dist.Normal(0.0, 1.0)), example=()).rank == 1


def test_a_factor_beyond_the_budget_is_refused_by_rank() -> None:
    """200 elements of 4 bytes, four times: 3200 bytes a column."""
    assert LowRankNormal(wide(200), rank=5, max_bytes=16_000, example=()).rank == 5
    with pytest.raises(ValueError, match=r"rank: .*rank 5 over 200 .*16,000 bytes.*max_bytes=15,999.*at most 4"):
        LowRankNormal(wide(200), rank=5, max_bytes=15_999, example=())


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, None])
def test_rank_must_be_a_positive_int(rank: Any) -> None:
    with pytest.raises(ValueError, match="rank: expected a positive int"):
        LowRankNormal(Sites(w=dist.Normal(0.0, 1.0)), rank=rank, example=())


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="init_scale: expected a positive standard deviation"):
        LowRankNormal(Sites(w=dist.Normal(0.0, 1.0)), init_scale=scale, example=())


def test_only_some_sites() -> None:
    guide = LowRankNormal(Sites(**TWO_SITES), example=(), sites=["b"])
    assert list(guide.layout) == ["b"] and guide.layout.size == 2
    assert guide.log_prob(guide.sample(3)).shape == (3,)


def test_statistics_by_element_are_those_of_the_marginals() -> None:
    """A coupled posterior far from the prior is not at the prior; the same weights as independent ones agree."""
    model = SupervisedModel(nn.Linear(3, 2), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=4)
    coupled, apart = LowRankNormal(model, rank=2), MeanField(model)
    with torch.no_grad():
        coupled.flat_loc.fill_(2.0)
        coupled.flat_cov_factor.normal_(0.0, 0.1)
        apart.flat_loc.fill_(2.0)
        apart.flat_log_scale.copy_(coupled.joint().variance.log() / 2)
    ours, theirs = (weight_statistics(model, guide, torch.zeros(1, 3)) for guide in (coupled, apart))
    for name, statistics in ours.items():
        assert statistics.at_prior == theirs[name].at_prior == 0.0
        assert statistics.signal_to_noise == pytest.approx(theirs[name].signal_to_noise, rel=1e-5)
