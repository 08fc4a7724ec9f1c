"""Steps of composites: parts of every kind train together, and each receives the gradient of its own draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import Composite, DeltaMixture, MCDropout, MeanField
from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.steps import CompositeStep
from tests.conformance.comparisons import assert_same, gradients, seeded

ensemble = partial(DeltaMixture, num_members=3, init="prior")

PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "MeanField and DeltaMixture": (partial(MeanField, antithetic=False), ensemble),
    "MCDropout and DeltaMixture": (MCDropout, ensemble),
    "two MCDropouts": (MCDropout, partial(MCDropout, p=0.3)),
    "two MeanFields": (MeanField, partial(MeanField, init_scale=0.3)),
}

each_pair = pytest.mark.parametrize("pair", PAIRS)


def problem(pair: str) -> tuple[SupervisedModel, Composite, tuple[Tensor, Tensor]]:
    """The first family for the last layer, the second for the others."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    rules = [("*bias", dist.Laplace(0.1, 0.8)), ("*", dist.Normal(0.2, 0.7))]
    model = SupervisedModel(net, likelihoods.Normal(0.5), rules, num_data=12).double()
    first, second = PAIRS[pair]
    guide = Composite(model, [("net.2.*", first), ("*", second)]).double()
    return model, guide, (torch.randn(6, 3).double(), torch.randn(6, 2).double())


@each_pair
def test_all_parts_train(pair: str) -> None:
    """Forty steps lower the loss, and every parameter of both parts moves."""
    model, guide, batch = problem(pair)
    elbo, optimizer = ELBO(), torch.optim.Adam(guide.parameters(), lr=0.03)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(elbo.loss_and_grads(model, guide, *batch))
        optimizer.step()
    assert sum(losses[-10:]) < sum(losses[:10])
    assert all(not torch.equal(p, before[name]) for name, p in guide.named_parameters())


@each_pair
def test_gradients_are_those_of_autograd_on_the_same_draws(pair: str) -> None:
    """The composite's step against parts' divergences and draws by hand, in one graph of ordinary operations."""
    model, guide, batch = problem(pair)
    found = seeded(lambda: gradients(model, guide, batch))
    pyro.set_rng_seed(7)
    steps = [part.step(model, sequential=False) for part in guide.parts]
    asked = max(step.num_samples(1) for step in steps)
    total = torch.zeros(())
    for index in range(asked):
        drawn = [step.draw(index) for step in steps]
        joined = type(drawn[0]).merged(drawn, guide.layout)
        with joined.running(model, update=False) as run:
            model(*batch)
        priors = prior_terms(run.latent)
        for step, own in zip(steps, drawn, strict=True):
            total = total + step.divergence(own, {name: priors[name] for name in step.layout}).total / asked
        total = total - sum(12 / 6 * m["fn"].log_prob(m["value"]).sum() for m in run.observed) / asked
    total.backward()
    torch.testing.assert_close(total.detach(), found.pop("loss"))
    assert_same(found, {f"guide.{name}": p.grad for name, p in guide.named_parameters()}, rtol=1e-9, atol=1e-9)


def test_noise_is_split_over_parts() -> None:
    model, guide, _ = problem("two MeanFields")
    first, second = guide.parts
    sizes = [part.facts.noise_size for part in guide.parts]
    assert sizes == [4 * 2 + 2, 3 * 4 + 4] and guide.facts.noise_size == sum(sizes)
    noise = torch.randn(guide.facts.noise_size).double()
    expected = {**first.rsample(noise[: sizes[0]]), **second.rsample(noise[sizes[0] :])}
    expected = {name: expected[name] for name in guide.layout}
    assert_same(guide.rsample(noise), expected)
    for sequential in (True, False):
        step = guide.step(model, sequential=sequential)
        assert_same(step.draw(0, noise), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if "DeltaMixture" in pair])
def test_members_loop_inside_a_composite(pair: str) -> None:
    """An ensemble that would run vectorized by itself; each of its members is drawn once."""
    model, guide, _ = problem(pair)
    mixture = guide.parts[1]
    assert mixture.step(model).vectorized
    step = guide.step(model)
    assert isinstance(step, CompositeStep) and not step.vectorized
    assert step.num_samples(1) == 3
    assert [int(step.draw(index).component) for index in range(3)] == [0, 1, 2]  # type: ignore[arg-type]
