"""How much memory training takes, counted in bytes of live tensors, and that sharing it changes no number."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import peak_live_bytes
from pyrobnn import fit, likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.priors import PriorSpec, he
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.training.gradient_step import train_step
from pyrobnn.training.optimizers import make_optimizer
from tests.guides.test_base import Sites
from tests.steps.test_mean_field import alternating, by_autograd, loss_of, noise_of, taken

SIZES = (200, 500, 500, 4)
UNIT = 4 * sum(inputs * outputs + outputs for inputs, outputs in itertools.pairwise(SIZES))
BATCH = torch.randn(8, SIZES[0]), torch.randint(SIZES[-1], (8,))


def network() -> nn.Module:
    a, b, c, d = SIZES
    return nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d))


def model_of(prior: PriorSpec | None = None) -> SupervisedModel:
    return SupervisedModel(network(), likelihoods.Categorical(), prior, num_data=24)


def steps(prior: PriorSpec | None = None, **options: Any) -> None:
    """Training steps with all that they need but the copy that ``fit`` keeps."""
    model = model_of(prior)
    guide = MeanField(model)
    elbo, optimizer = ELBO(**options), make_optimizer(model, guide)
    for _ in range(3):
        train_step(model, guide, elbo, optimizer, BATCH)


def fits(**options: Any) -> None:
    """Two epochs as a user runs them, the first with Pyro's validation."""
    model = model_of()
    fit(model, MeanField(model), [BATCH] * 3, epochs=2, progress=False, **options)


# In multiples of the bytes of the weights: Adam and the parameters 6, the weights that the network was converted with
# 1, noise 1, two vectors that are values and scales and then gradients 2, the layers' gradients 1. A training run keeps
# a copy of the parameters (2); gradients that are added up take another two vectors.
@pytest.mark.parametrize(
    ("run", "bound"),
    [
        (steps, 11.3),
        (partial(steps, he()), 11.3),
        (partial(steps, num_particles=3), 13.3),
        (fits, 13.3),
        (partial(fits, accumulate=3), 15.3),
    ],
    ids=["step", "scale by layer", "three draws", "fit", "accumulated"],
)
def test_the_peak_of_a_mean_field_step(run: Callable[[], None], bound: float) -> None:
    run()  # what is cached
    assert bound - 1.0 < peak_live_bytes(run) / UNIT < bound


def test_the_count_is_that_of_a_known_sum() -> None:
    """Three vectors at once, and a temporary one inside of an operation that is composed of others."""

    def run() -> None:
        first = torch.zeros(10_000)
        second, third = first + 1.0, first + 2.0
        del first, second, third
        torch.zeros(20_000)

    assert peak_live_bytes(run) == pytest.approx(120_000, abs=1_000)


# ------------------------------------------------------------------------------ values in the memory of gradients


class _Other(torch.autograd.Function):
    """A product whose gradients are the very tensors that were multiplied."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        return first.mul(second).sum()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor]:
        first, second = ctx.saved_tensors
        return second, first


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_value_may_be_the_gradient_of_another(names: tuple[str, str]) -> None:
    """It lies where the gradients are collected."""
    families = {name: dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2) for name in ("a", "b", "c")}
    guide = MeanField(Sites(**families), example=())
    noise = torch.randn(27)
    draws = guide.step(None).draw(0, noise)
    expected = torch.zeros(27)
    values = {name: draws[name].detach().clone() for name in names}
    for name, other in (names, names[::-1]):
        expected[guide.layout[name].window] = values[other].flatten()
    _Other.apply(draws[names[0]], draws[names[1]]).backward()
    torch.testing.assert_close(guide.flat_loc.grad, expected)
    torch.testing.assert_close(guide.flat_log_scale.grad, expected * noise * guide.flat_log_scale.detach().exp())


def test_a_transposed_value_may_be_its_gradient() -> None:
    class Transposed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            ctx.save_for_backward(value)
            return value.sum()

        @staticmethod
        def backward(ctx: Any, *_: Tensor) -> Tensor:
            return ctx.saved_tensors[0].T

    guide = MeanField(Sites(a=dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2)), example=())
    draws = guide.step(None).draw(0)
    expected = draws["a"].detach().T.flatten().clone()
    Transposed.apply(draws["a"]).backward()
    torch.testing.assert_close(guide.flat_loc.grad, expected)


def test_the_divergence_of_a_differentiated_draw_is_refused() -> None:
    """Its scales lie in the memory of the gradient."""
    model, guide, batch = alternating()
    step = guide.step(model)
    draws = step.draw(0)
    with draws.running(model, update=True) as run:
        model(*batch)
    priors = prior_terms(run.latent)
    step.divergence(draws, priors).total.backward()
    with pytest.raises(RuntimeError, match="its memory has been used again"):
        step.divergence(draws, priors)


def test_gradients_that_are_kept_are_not_overwritten_by_later_draws() -> None:
    """As by an optimizer that clears them after the draw."""
    model, guide, batch = alternating()
    step, noises = guide.step(model), [noise_of(guide) for _ in range(2)]
    loss_of(model, step, step.draw(0, noises[0]), batch).backward()
    kept = guide.flat_loc.grad, guide.flat_log_scale.grad
    before = [gradient.clone() for gradient in kept]
    loss = loss_of(model, step, step.draw(1, noises[1]), batch)
    assert all(torch.equal(gradient, was) for gradient, was in zip(kept, before, strict=True))
    guide.zero_grad()
    loss.backward()
    found = taken(guide)
    for ours, theirs in zip(found, by_autograd(model, guide, batch, noises[1:]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_windows_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of means and scales of the prior, too."""
    monkeypatch.setattr("pyrobnn.steps.mean_field_memory._CHUNK", 7)
    scales = torch.linspace(0.5, 1.5, 12).view(4, 3)
    for rules in (
        None,
        [("0.weight", dist.Normal(0.3, scales).to_event(2)), ("*bias", dist.Laplace(0.0, 1.0)), ("*", he())],
    ):
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        model = SupervisedModel(net, likelihoods.Normal(0.5), rules, num_data=12).double()
        guide = MeanField(model).double()
        batch = torch.randn(6, 3).double(), torch.randn(6, 2).double()
        step, noise = guide.step(model), noise_of(guide)
        loss_of(model, step, step.draw(0, noise), batch, 0.7).backward()
        found = taken(guide)
        for ours, theirs in zip(found, by_autograd(model, guide, batch, [noise], 0.7), strict=True):
            torch.testing.assert_close(ours, theirs)


# ------------------------------------------------------------------- starting values are the network's own weights


def starts(model: SupervisedModel) -> Tensor:
    return MeanField(model).flat_loc.detach()


def flat(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def test_guides_start_at_the_weights_that_the_network_holds_after_training_too() -> None:
    net = network()
    model = SupervisedModel(net, likelihoods.Categorical(), num_data=24)
    held = {value.data_ptr() for value in model.net.initial_values().values()}
    assert held == {parameter.data_ptr() for parameter in model.net.network.parameters()}
    assert not held & {parameter.data_ptr() for parameter in net.parameters()}
    fit(model, MeanField(model), [BATCH] * 3, epochs=1, lr=0.1, validation=[BATCH], patience=1, progress=False)
    assert torch.equal(starts(model), flat(net))


def test_loaded_weights_are_started_from() -> None:
    net, model = network(), model_of()
    other = SupervisedModel(net, likelihoods.Categorical(), num_data=24)
    model.load_state_dict(other.state_dict())
    assert torch.equal(starts(model), flat(net))
    guide = MeanField(model)
    with torch.no_grad():
        guide.flat_loc.zero_()
    assert torch.equal(starts(model), flat(net))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_start_from_weights_of_their_own(copied: Callable[[SupervisedModel], SupervisedModel]) -> None:
    model = model_of()
    before = starts(model)
    twin = copied(model)
    assert torch.equal(starts(twin), before)
    with torch.no_grad():
        for parameter in twin.net.network.parameters():
            parameter.zero_()
    assert torch.equal(starts(model), before)
    assert not starts(twin).any()


def test_a_copied_objective_trains_as_the_first() -> None:
    """The memory of a step is no part of it."""
    found = []
    for copied in (False, True):
        torch.manual_seed(0)
        model = model_of()
        guide, elbo = MeanField(model), ELBO()
        optimizer = make_optimizer(model, guide)
        for _ in range(2):
            train_step(model, guide, elbo, optimizer, BATCH)
        elbo.step(model, guide)[0].restart(None)  # both begin a new antithetic group
        elbo = copy.deepcopy(elbo) if copied else elbo
        train_step(model, guide, elbo, optimizer, BATCH)
        found.append(torch.cat([guide.flat_loc.detach(), guide.flat_log_scale.detach()]))
    assert torch.equal(*found)
