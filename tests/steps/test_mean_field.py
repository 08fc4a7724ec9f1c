"""Mean-field steps: antithetic draws, and gradients against plain automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.steps import Step
from tests.conformance.comparisons import assert_same, gradients, seeded
from tests.conformance.conjugate import ConjugateRegression
from tests.guides.test_base import Sites


def scattered(guide: MeanField) -> MeanField:
    """Random means, scales between 0.2 and 0.6; in double precision."""
    guide.double()
    with torch.no_grad():
        guide.flat_loc.normal_()
        guide.flat_log_scale.uniform_(-1.5, -0.5)
    return guide


# --------------------------------------------------------------------------------------------- antithetic draws


def training_draws(guide: MeanField, count: int) -> Tensor:
    """Flat draws as training steps make them, parameters fixed."""
    step = guide.step(None)
    with torch.no_grad():  # a draw is over when nobody holds it
        return torch.stack([guide.layout.join(step.draw(index)).detach() for index in range(count)])


def three_weights(**options: bool) -> MeanField:
    return scattered(MeanField(Sites(w=dist.Normal(0.0, 1.0).expand([3]).to_event(1)), example=(), **options))


def test_antithetic_draws_mirror_each_other() -> None:
    guide = three_weights()
    draws = training_draws(guide, 16)
    torch.testing.assert_close(draws[0::2] + draws[1::2], (2.0 * guide.flat_loc.detach()).expand(8, 3))
    assert not torch.allclose(draws[0].sub(guide.flat_loc).abs(), draws[8].sub(guide.flat_loc).abs())


def test_signs_of_a_group_are_orthogonal() -> None:
    """Products of two quarters' noises sum to zero over a group; so do fresh pairs, in expectation."""
    guide = scattered(MeanField(Sites(w=dist.Normal(0.0, 1.0).expand([12]).to_event(1)), example=()))
    noise = (training_draws(guide, 8) - guide.flat_loc.detach()) / guide.flat_log_scale.detach().exp()
    products = (noise.T @ noise).reshape(4, 3, 4, 3)
    own = torch.stack([products[q, :, q] for q in range(4)])
    torch.testing.assert_close(own, 8 * torch.stack([n.outer(n) for n in noise[0].split(3)]), rtol=1e-4, atol=1e-5)
    products[range(4), :, range(4)] = 0.0
    torch.testing.assert_close(products, torch.zeros_like(products), rtol=0.0, atol=1e-5)


def test_without_antithetic_draws_are_independent() -> None:
    guide = three_weights(antithetic=False)
    draws = training_draws(guide, 6)
    assert not torch.allclose(draws[0::2] + draws[1::2], 2.0 * guide.flat_loc.detach())


@pytest.mark.statistical
@pytest.mark.parametrize("place", range(8))
def test_each_draw_of_a_group_is_distributed_as_the_guide(place: int) -> None:
    """Kolmogorov–Smirnov on 3000 standardized values; p above 0.001."""
    guide = three_weights()
    draws = training_draws(guide, 8000)[place::8]
    noise = (draws - guide.flat_loc.detach()) / guide.flat_log_scale.detach().exp()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3


@torch.no_grad()
def test_a_restart_leaves_only_the_seed() -> None:
    """No draw of an antithetic group that was begun is left."""
    guide = three_weights()
    step = guide.step(None)
    pyro.set_rng_seed(5)
    expected = step.draw(0)["w"].detach().clone()
    pyro.set_rng_seed(5)
    assert not torch.equal(step.draw(1)["w"], expected)
    step.restart()
    pyro.set_rng_seed(5)
    assert torch.equal(step.draw(0)["w"], expected)


def test_gradients_accumulate_over_evaluations() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = scattered(MeanField(model))
    apart = []
    for together in (False, True):
        elbo = ELBO()  # with a step of its own, whose antithetic group begins
        pyro.set_rng_seed(5)
        guide.zero_grad()
        for _ in range(3):
            elbo.loss_and_grads(model, guide, data.x, data.y)
            if not together:
                apart.append([p.grad.clone() for p in guide.parameters()])
                guide.zero_grad()
    for parameter, *parts in zip(guide.parameters(), *apart, strict=True):
        torch.testing.assert_close(parameter.grad, sum(parts))


# ------------------------------------------------------------------------------- against automatic differentiation


def alternating() -> tuple[SupervisedModel, MeanField, tuple[Tensor, Tensor]]:
    """Fixed Normal priors with Laplace and log-normal ones between them: windows and gaps of the flat vector."""
    rules = [("*bias", dist.Laplace(0.1, 0.8)), ("*", dist.Normal(0.2, 0.7))]
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model = SupervisedModel(net, likelihoods.Normal(dist.LogNormal(0.0, 0.5)), rules, num_data=12).double()
    return model, scattered(MeanField(model)), (torch.randn(6, 3).double(), torch.randn(6, 2).double())


def noise_of(guide: MeanField) -> Tensor:
    """Noise of one draw."""
    return torch.randn_like(guide.flat_loc)


def loss_of(model: nn.Module, step: Step, draws: Draws, batch: Any, weight: float = 1.0) -> Tensor:
    """The negative ELBO of a draw with a weighted KL."""
    with draws.running(model, update=True) as run:
        model(*batch)
    score = sum(12 / 6 * m["fn"].log_prob(m["value"]).sum() for m in run.observed)
    divergence = step.divergence(draws, prior_terms(run.latent)).total if weight else 0.0
    return weight * divergence - score


def taken(guide: MeanField) -> list[Tensor]:
    """The parameters' gradients, which are cleared."""
    found = [p.grad.clone() for p in (guide.flat_loc, guide.flat_log_scale)]
    guide.zero_grad()
    return found


def by_autograd(model: nn.Module, guide: MeanField, batch: Any, noises: list[Tensor], weight: float = 1.0) -> Any:
    """Gradients of the sum of losses, by a step of ordinary operations."""
    step = guide.step(model, sequential=False)
    for noise in noises:
        loss_of(model, step, step.draw(0, noise), batch, weight).backward()
    return taken(guide)


@pytest.mark.parametrize("scale", [1.0, 1.0 / 12, 1e3, -2.0, 0.0])
@pytest.mark.parametrize("weight", [1.0, 0.3, 1e-25, 0.0])
def test_gradients_are_those_of_autograd_whatever_scales_the_loss(scale: float, weight: float) -> None:
    """Weights of the KL too: none at all counts nothing of it."""
    model, guide, batch = alternating()
    step, noise = guide.step(model), noise_of(guide)
    for _ in range(2):  # the second in memory that is used again
        (scale * loss_of(model, step, step.draw(0, noise), batch, weight)).backward()
        expected = [scale * gradient for gradient in by_autograd_kept(model, guide, batch, noise, weight)]
        for ours, theirs in zip(taken(guide), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def by_autograd_kept(model: nn.Module, guide: MeanField, batch: Any, noise: Tensor, weight: float) -> list[Tensor]:
    """As ``by_autograd``, without touching gradients."""
    step = guide.step(model, sequential=False)
    loss = loss_of(model, step, step.draw(0, noise), batch, weight)
    return list(torch.autograd.grad(loss, [guide.flat_loc, guide.flat_log_scale]))


def test_the_value_of_the_divergence_is_that_of_autograd() -> None:
    model, guide, batch = alternating()
    noise, found = noise_of(guide), []
    for step in (guide.step(model), guide.step(model, sequential=False)):
        draws = step.draw(0, noise)
        with draws.running(model, update=True) as run:
            model(*batch)
        found.append(step.divergence(draws, prior_terms(run.latent)))
    torch.testing.assert_close(found[0].total, found[1].total)
    torch.testing.assert_close(torch.stack(list(found[0].by_site.values())).sum(), found[0].total)
    assert_same(found[0].by_site, found[1].by_site, rtol=1e-7, atol=1e-9)


def test_hooks_fire_once_and_see_the_whole_gradient() -> None:
    model, guide, batch = alternating()
    step, noise = guide.step(model), noise_of(guide)
    parameters = [guide.flat_loc, guide.flat_log_scale]
    before: dict[int, list[Tensor]] = {0: [], 1: []}
    after: dict[int, list[Tensor]] = {0: [], 1: []}
    for index, parameter in enumerate(parameters):
        parameter.register_hook(lambda gradient, index=index: before[index].append(gradient.clone()))
        parameter.register_post_accumulate_grad_hook(lambda p, index=index: after[index].append(p.grad.clone()))
    loss_of(model, step, step.draw(0, noise), batch).backward()
    step.finish()
    assert [len(found) for found in (*before.values(), *after.values())] == [1] * 4
    expected = taken(guide)
    for index in range(2):
        torch.testing.assert_close(before[index][0], expected[index])
        torch.testing.assert_close(after[index][0], expected[index])
    for ours, theirs in zip(expected, by_autograd_kept(model, guide, batch, noise, 1.0), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_hook_may_change_the_gradient() -> None:
    model, guide, batch = alternating()
    step, noise = guide.step(model), noise_of(guide)
    expected = by_autograd(model, guide, batch, [noise])
    handle = guide.flat_loc.register_hook(lambda gradient: gradient.clamp(-0.5, 0.5))
    loss_of(model, step, step.draw(0, noise), batch).backward()
    handle.remove()
    torch.testing.assert_close(guide.flat_loc.grad, expected[0].clamp(-0.5, 0.5))


def test_a_gradient_scaler_scales_the_divergences_share() -> None:
    """By ``torch.amp.GradScaler`` itself; unscaled the gradient is that of the loss."""
    model, guide, batch = alternating()
    step, noise = guide.step(model), noise_of(guide)
    expected = by_autograd(model, guide, batch, [noise])
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD(guide.parameters(), lr=0.0)
    scaler.scale(loss_of(model, step, step.draw(0, noise), batch)).backward()
    torch.testing.assert_close(guide.flat_loc.grad, 64.0 * expected[0])
    scaler.unscale_(optimizer)
    for ours, theirs in zip(taken(guide), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cleared", [None, True, False])
def test_gradients_add_up_over_backward_passes(cleared: bool | None) -> None:
    """From no gradient, or after ``zero_grad`` with or without one in its place."""
    model, guide, batch = alternating()
    step, noises = guide.step(model), [noise_of(guide) for _ in range(3)]
    if cleared is not None:
        loss_of(model, step, step.draw(0, noises[0]), batch).backward()
        guide.zero_grad(set_to_none=cleared)
    for index, noise in enumerate(noises):
        loss_of(model, step, step.draw(index, noise), batch).backward()
    found = taken(guide)
    for ours, theirs in zip(found, by_autograd(model, guide, batch, noises), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("count", [2, 4])
def test_draws_that_live_together_give_the_sum_of_their_gradients(count: int) -> None:
    model, guide, batch = alternating()
    step, noises = guide.step(model), [noise_of(guide) for _ in range(count)]
    draws = [step.draw(index, noise) for index, noise in enumerate(noises)]
    sum(loss_of(model, step, draw, batch) for draw in draws).backward()  # type: ignore[union-attr]
    found = taken(guide)
    for ours, theirs in zip(found, by_autograd(model, guide, batch, noises), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_draw_whose_memory_was_used_again_is_refused() -> None:
    model, guide, batch = alternating()
    step = guide.step(model)
    loss = loss_of(model, step, step.draw(0), batch)
    loss.backward(retain_graph=True)
    step.draw(1)
    guide.zero_grad()
    with pytest.raises(RuntimeError, match=r"its memory has been used again|modified by an inplace operation"):
        loss.backward()
    assert guide.flat_loc.grad is None


def test_a_second_derivative_is_refused() -> None:
    model, guide, batch = alternating()
    step = guide.step(model)
    loss = loss_of(model, step, step.draw(0), batch)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, guide.flat_loc, create_graph=True)


def test_a_divergence_that_is_computed_but_not_in_the_loss_adds_nothing() -> None:
    model, guide, batch = alternating()
    step, noise = guide.step(model), noise_of(guide)
    draws = step.draw(0, noise)
    loss = loss_of(model, step, draws, batch, 0.0)
    with draws.running(model, update=True) as run:
        model(*batch)
    assert float(step.divergence(draws, prior_terms(run.latent)).total.detach()) > 0.0
    loss.backward()
    found = taken(guide)
    for ours, theirs in zip(found, by_autograd(model, guide, batch, [noise], 0.0), strict=True):
        torch.testing.assert_close(ours, theirs)


# --------------------------------------------------------------------------------------------- under estimators


def tied() -> nn.Module:
    """Two layers that share one weight, and one that does not."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    net[2].weight = net[0].weight
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "apart": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
    "tied": tied,
}


@pytest.mark.parametrize(
    ("name", "network"),
    [  # the others refuse tied weights
        *((name, "apart") for name in ("flipout", "local_reparameterization", "per_example", "per_group")),
        *((name, "tied") for name in ("flipout", "per_group")),
    ],
)
def test_under_estimators_gradients_are_those_of_autograd(name: str, network: str) -> None:
    """Losses and gradients of one evaluation, from equal random states."""
    rules = [("*bias", dist.Laplace(0.1, 0.8)), ("*", dist.Normal(0.2, 0.7))]
    likelihood = likelihoods.Normal(0.5)  # all sites are Gaussian, so that both ways draw the same numbers
    model = SupervisedModel(NETWORKS[network](), likelihood, rules, num_data=12).double()
    guide = scattered(MeanField(model, antithetic=False))
    batch = torch.randn(8, 3).double(), torch.randn(8, 2).double()

    class ByAutograd(ELBO):
        def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
            loss.backward()
            return loss.item()

    ours, theirs = (
        seeded(lambda e=elbo: gradients(model, guide, batch, e))
        for elbo in (ELBO(estimator=name), ByAutograd(estimator=name))
    )
    assert {"guide.loc", "guide.log_scale"} <= set(ours)
    assert_same(ours, theirs, rtol=1e-9, atol=1e-9)
