"""Steps of Gaussians with low-rank covariance, against plain automatic differentiation in double precision."""

from __future__ import annotations

import functools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import LowRankNormal
from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.priors import PriorSpec, he
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.steps import LowRankStep
from pyrobnn.steps.low_rank_loops import CompiledPasses
from pyrobnn.steps.low_rank_passes import TorchPasses
from pyrobnn.training.gradient_step import train_step
from pyrobnn.training.optimizers import make_optimizer
from tests.core.test_shared_library import has_gcc
from tests.guides.test_base import Sites
from tests.steps.test_mean_field import loss_of

SCALES = torch.linspace(0.5, 1.5, 12).view(4, 3)
RULES: dict[str, PriorSpec | None] = {
    "one scale": None,
    "scales by layer": he(),
    "windows and gaps": [("*bias", dist.Laplace(0.1, 0.8)), ("*", dist.Normal(0.2, 0.7))],
    "by element": [("0.weight", dist.Normal(0.3, SCALES).to_event(2)), ("*", dist.Normal(0.0, 1.0))],
}


@pytest.fixture(autouse=True, params=["torch", "loops"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of passes, whatever the size."""
    if request.param == "torch":
        monkeypatch.setattr("pyrobnn.steps.low_rank.passes_for", lambda factor: TorchPasses())
    elif not has_gcc():
        pytest.skip("no GCC with the vectorized functions of glibc on this machine")
    else:
        compiled = functools.cache(CompiledPasses)
        monkeypatch.setattr("pyrobnn.steps.low_rank.passes_for", lambda factor: compiled(len(factor), factor.dtype))


def problem(rules: PriorSpec | None = None, rank: int = 3) -> tuple[SupervisedModel, LowRankNormal, Any]:
    """A network with a noise scale that is a site, too; the guide's scales are 0.2 to 0.6, its factor as large."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model = SupervisedModel(net, likelihoods.Normal(dist.LogNormal(0.0, 0.5)), rules, num_data=12).double()
    guide = LowRankNormal(model, rank).double()
    with torch.no_grad():
        guide.flat_cov_factor.normal_(0.0, 0.4)
        guide.flat_log_scale.uniform_(-1.5, -0.5)
    return model, guide, (torch.randn(6, 3).double(), torch.randn(6, 2).double())


def noise_of(guide: LowRankNormal) -> Tensor:
    return torch.randn(guide.layout.size + guide.rank, dtype=torch.float64)


def taken(guide: LowRankNormal) -> list[Tensor]:
    """The parameters' gradients, which are cleared."""
    found = [parameter.grad.clone() for parameter in guide.parameters() if parameter.grad is not None]
    guide.zero_grad()
    return found


def by_autograd(
    model: nn.Module, guide: LowRankNormal, batch: Any, noises: list[Tensor], weight: float = 1.0
) -> list[Tensor]:
    """Gradients of the sum of losses, by a step of ordinary operations."""
    step = guide.step(model, sequential=False)
    for noise in noises:
        loss_of(model, step, step.draw(0, noise), batch, weight).backward()
    return taken(guide)


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) == 3
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("size", [7, 2**15])
def test_gradients_are_those_of_autograd(
    rules: PriorSpec | None, weight: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one part or several, whatever scales the loss; the second time in memory that is used again."""
    monkeypatch.setattr("pyrobnn.steps.low_rank_passes._CHUNK", size)
    monkeypatch.setattr("pyrobnn.steps.low_rank_passes._LONG_CHUNK", size)
    model, guide, batch = problem(rules)
    step = guide.step(model)
    assert isinstance(step, LowRankStep)
    for scale in (1.0, -0.2):
        noise = noise_of(guide)
        (scale * loss_of(model, step, step.draw(0, noise), batch, weight)).backward()
        found = taken(guide)
        assert_close(found, [scale * gradient for gradient in by_autograd(model, guide, batch, [noise], weight)])
        with torch.no_grad():
            guide.flat_loc.add_(0.1)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_values_are_those_of_autograd(rules: PriorSpec | None) -> None:
    """Draw, divergence and its parts, before and after the windows of the prior are known."""
    model, guide, batch = problem(rules)
    step, plain = guide.step(model), guide.step(model, sequential=False)
    for _ in range(2):
        noise, found = noise_of(guide), []
        for made in (step, plain):
            draws = made.draw(0, noise)
            with draws.running(model, update=True) as run:
                model(*batch)
            divergence = made.divergence(draws, prior_terms(run.latent))
            found.append((dict(draws), divergence))
        (ours, own), (theirs, other) = found
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own.total, other.total, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(torch.as_tensor(own.joint), torch.as_tensor(other.joint))
        assert (own.exact, own.name, list(own.by_site)) == (other.exact, other.name, list(other.by_site))
        for name, value in other.by_site.items():
            torch.testing.assert_close(own.by_site[name], value)


def test_the_divergence_by_itself() -> None:
    """No site's value is in the loss."""
    model, guide, batch = problem()
    for sequential in (True, False):
        step = guide.step(model, sequential=sequential)
        draws = step.draw(0, torch.zeros(guide.layout.size + guide.rank, dtype=torch.float64))
        with draws.running(model, update=True) as run:
            model(*batch)
        step.divergence(draws, prior_terms(run.latent)).total.backward()
        if sequential:
            found = taken(guide)
    assert_close(found, taken(guide))


def test_gradients_add_up_over_backward_passes_and_draws_that_live_together() -> None:
    model, guide, batch = problem()
    step, noises = guide.step(model), [noise_of(guide) for _ in range(4)]
    for noise in noises[:2]:
        loss_of(model, step, step.draw(0, noise), batch).backward()
    draws = [step.draw(0, noise) for noise in noises[2:]]
    sum(loss_of(model, step, draw, batch) for draw in draws).backward()  # type: ignore[union-attr]
    found = taken(guide)
    assert_close(found, by_autograd(model, guide, batch, noises))


def test_a_draw_whose_memory_was_used_again_is_refused() -> None:
    model, guide, batch = problem()
    step = guide.step(model)
    loss = loss_of(model, step, step.draw(0), batch)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"its memory has been used again|modified by an inplace operation"):
        loss.backward()
    again = loss_of(model, step, step.draw(0), batch)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(again, guide.flat_loc, create_graph=True)


def test_a_site_that_was_not_sampled_is_refused() -> None:
    model, guide, _ = problem()
    step = guide.step(model)
    with pytest.raises(ValueError, match="the model did not sample it, but the guide couples it with others"):
        step.divergence(step.draw(0), {})


@pytest.mark.parametrize("antithetic", [True, False])
def test_draws_of_a_group_mirror_each_other(antithetic: bool) -> None:
    guide = LowRankNormal(
        Sites(w=dist.Normal(0.0, 1.0).expand([9]).to_event(1)), rank=3, example=(), antithetic=antithetic
    )
    step = guide.step(None)
    with torch.no_grad():  # a draw is over when nobody holds it
        draws = torch.stack([step.draw(index)["w"].clone() for index in range(8)])
    sums = draws[0::2] + draws[1::2]
    assert torch.allclose(sums, torch.zeros_like(sums), atol=1e-7) is antithetic
    assert guide.config()["antithetic"] is antithetic


def test_draws_have_the_guides_covariance() -> None:
    """Over 20,000 groups of eight, by z of each entry of the second moment; the seed is fixed."""
    guide = LowRankNormal(Sites(w=dist.Normal(0.0, 1.0).expand([3]).to_event(1)), rank=2, example=()).double()
    with torch.no_grad():
        guide.flat_cov_factor.normal_()
        guide.flat_log_scale.uniform_(-1.0, 0.0)
    step = guide.step(None)
    with torch.no_grad():
        draws = torch.stack([step.draw(index)["w"].clone() for index in range(16_000)])
    products = (draws.unsqueeze(-1) * draws.unsqueeze(-2)).view(-1, 8, 9).mean(1)
    factor = guide.flat_cov_factor.detach()
    covariance = factor @ factor.T + guide.flat_log_scale.detach().mul(2.0).exp().diag()
    errors = (products.mean(0) - covariance.flatten()) / (products.std(0) / len(products) ** 0.5)
    assert float(errors.abs().max()) < 4.0


def test_training_by_both_steps_is_the_same() -> None:
    """A few steps with Adam, from equal random states."""

    class Plain(LowRankNormal):
        def step(self, model: Any, estimators: Any = None, **_: Any) -> Any:
            return super().step(model, estimators, sequential=False)

    found = []
    for family in (LowRankNormal, Plain):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        model = SupervisedModel(net, likelihoods.Normal(0.5), num_data=12).double()
        guide = family(model, 3, antithetic=False).double()
        batch = torch.randn(6, 3).double(), torch.randn(6, 2).double()
        elbo, optimizer = ELBO(), make_optimizer(model, guide, lr=0.05)
        for _ in range(5):
            train_step(model, guide, elbo, optimizer, batch)
        found.append([parameter.detach() for parameter in guide.parameters()])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-8)
