"""Amortized adversaries: who moves which way, at what gradient, and what becomes of a run that is resumed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.objectives import Objective
from pyrobnn.robustness.training import (
    AdversarialTraining,
    AmortizedDistribution,
    GeneratedPerturbation,
    ImplicitDistribution,
    PerturbationEncoder,
    PerturbationGenerator,
)
from pyrobnn.robustness.training.amortized import shown_to_generator
from pyrobnn.robustness.training.attacked import attacking
from tests.conformance.comparisons import assert_same
from tests.conformance.objective_suite import ObjectiveConformance
from tests.conformance.perturbation_suite import PerturbationConformance
from tests.robustness.training.problems import FAMILIES, fitted, problem


class Joined(nn.Module):
    """A generator of vectors that is given its noise beside what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(9 + 4, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, shown: Tensor, noise: Tensor) -> Tensor:
        return self.net(torch.cat([shown, noise], 1))


def explicit(epsilon: float = 0.2, **options: Any) -> AmortizedDistribution:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        generator = nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 6)).double()
    return AmortizedDistribution(generator, epsilon, **options)


def implicit(epsilon: float = 0.2, **options: Any) -> ImplicitDistribution:
    options = {"threshold": -math.inf, "noise_size": 4} | options
    with torch.random.fork_rng():
        torch.manual_seed(3)
        generator, encoder = Joined().double(), nn.Linear(3, 8).double()
    return ImplicitDistribution(generator, encoder, epsilon, **options)


KINDS: dict[str, Callable[..., GeneratedPerturbation]] = {"explicit": explicit, "implicit": implicit}
each_kind = pytest.mark.parametrize("kind", KINDS)


class TestExplicit(ObjectiveConformance):
    def make(self) -> Objective:
        adversary = explicit()
        adversary.players()
        return AdversarialTraining(adversary)


class TestImplicit(ObjectiveConformance):
    def make(self) -> Objective:
        adversary = implicit()
        adversary.players()
        return AdversarialTraining(adversary, num_particles=2)


class TestExplicitPerturbation(PerturbationConformance):
    def make(self, epsilon: float, clip: tuple[float, float] | None) -> GeneratedPerturbation:
        return explicit(epsilon, clip=clip)


class TestImplicitPerturbation(PerturbationConformance):
    def make(self, epsilon: float, clip: tuple[float, float] | None) -> GeneratedPerturbation:
        return implicit(epsilon, clip=clip)


def value(adversary: GeneratedPerturbation, model: Any, draw: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The mean loss at perturbed inputs and the mean entropy, from fixed noise, in the graph of the networks."""
    x, y = batch
    torch.manual_seed(11)
    with attacking(model, draw) as network:
        delta, entropies = adversary.proposed(network, x, y)
        return network.losses(adversary.ball.clipped(x + delta), y).mean(), entropies.mean()


@each_kind
def test_the_player_climbs_the_loss_and_the_entropy(kind: str) -> None:
    """Its gradient is minus that of ``loss + weight * entropy``, by direct differentiation with the same noise.

    The prior's scale and the network without batch norm make the outer loss the same function in both modes.
    """
    model, guide, batch = problem(batch_norm=False)
    adversary = KINDS[kind](entropy_weight=0.7)
    (player,) = adversary.players()
    elbo = AdversarialTraining(adversary)
    torch.manual_seed(11)
    elbo.backward(model, guide, batch, scale=None)
    assert all(p.grad is None for p in adversary.networks.parameters())
    parts = player.objective.backward(model, guide, batch, scale=None)
    loss, entropy = value(adversary, model, guide.rsample(), batch)
    parameters = list(adversary.networks.parameters())
    expected = torch.autograd.grad(-(loss + 0.7 * entropy), parameters)
    for parameter, slope in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-9, atol=1e-12)
    found = {name: float(v) / 12 for name, v in parts.values.items()}
    assert found == pytest.approx({"adversarial_loss": float(loss.detach()), "entropy": float(entropy.detach())})
    assert float(parts.loss) / 12 == pytest.approx(-float((loss + 0.7 * entropy).detach()))


@each_kind
def test_several_draws_share_the_gradient(kind: str) -> None:
    """Two particles of a point: the mean of two moves."""
    model, guide, batch = problem(batch_norm=False)
    adversary = KINDS[kind](entropy_weight=0.0)
    (player,) = adversary.players()
    torch.manual_seed(11)
    AdversarialTraining(adversary, num_particles=2).backward(model, guide, batch, scale=None)
    player.objective.backward(model, guide, batch, scale=None)
    x, y = batch
    torch.manual_seed(11)
    with attacking(model, guide.rsample()) as network:
        losses = [network.losses(x + adversary.proposed(network, x, y)[0], y).mean() for _ in range(2)]
    parameters = list(adversary.networks["generator"].parameters())
    expected = torch.autograd.grad(-sum(losses) / 2, parameters)
    for parameter, slope in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-9, atol=1e-12)


def test_small_steps_raise_the_loss_and_lower_what_the_encoder_misses() -> None:
    """Generator up the loss; encoder (alone, the loss does not depend on it) down ``-E log q``; network fixed."""
    model, guide, batch = problem(batch_norm=False)
    for name, weight in (("generator", 0.0), ("encoder", 1.0)):
        adversary = implicit(entropy_weight=weight)
        (player,) = adversary.players()
        before = [float(v.detach()) for v in value(adversary, model, guide.rsample(), batch)]
        torch.manual_seed(11)
        AdversarialTraining(adversary).backward(model, guide, batch, scale=None)
        player.objective.backward(model, guide, batch, scale=None)
        with torch.no_grad():
            for parameter in adversary.networks[name].parameters():
                assert parameter.grad is not None
                parameter -= 1e-3 * parameter.grad
        after = [float(v.detach()) for v in value(adversary, model, guide.rsample(), batch)]
        if name == "generator":
            assert after[0] > before[0]
        else:
            assert after[1] > before[1] and after[0] == before[0]


@each_kind
@pytest.mark.parametrize("family", FAMILIES)
def test_each_optimizer_moves_its_own_parameters(kind: str, family: str) -> None:
    adversary = KINDS[kind](entropy_weight=0.1)
    before = copy.deepcopy(adversary.networks.state_dict())
    guide, history = fitted(family, AdversarialTraining(adversary), players=adversary.players(lr=1e-2))
    moved = {name: not torch.equal(v, before[name]) for name, v in adversary.networks.state_dict().items()}
    assert all(moved.values()), moved
    assert len(history.terms["generator.loss"]) == 2
    # With a player that does not move, the guide's first step is the same.
    ends = []
    for lr in (0.0, 1e-2):
        other = KINDS[kind](entropy_weight=0.1)
        model, guide, (x, y) = problem(family)
        pb.fit(
            model,
            guide,
            [(x, y)],
            elbo=AdversarialTraining(other),
            players=other.players(lr=lr),
            epochs=1,
            seed=0,
            progress=False,
        )
        ends.append(guide.state_dict())
        if not lr:
            assert_same(other.networks.state_dict(), before)
    assert_same(*ends)


@each_kind
def test_a_resumed_run_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    def run(epochs: int, **options: Any) -> dict[str, Tensor]:
        adversary = KINDS[kind](entropy_weight=0.1)
        guide, history = fitted(
            "MeanField", AdversarialTraining(adversary), epochs, players=adversary.players(lr=1e-2), **options
        )
        assert history.epochs == epochs
        return {**guide.state_dict(), **adversary.networks.state_dict()}

    whole = run(4)
    run(2, checkpoint=tmp_path)
    assert_same(run(4, checkpoint=tmp_path, resume=True), whole)


def test_the_hinge_stops_the_entropy() -> None:
    model, guide, batch = problem(batch_norm=False)
    _, entropy = value(implicit(threshold=100.0), model, guide.rsample(), batch)
    assert float(entropy.detach()) == -100.0
    encoder = implicit(threshold=100.0).networks["encoder"]
    assert all(p.grad is None for p in encoder.parameters())


def test_the_bound_is_exact_for_a_gaussian_that_knows_the_noise() -> None:
    """An encoder that returns the noise itself, and the log standard deviation -1: ``log q = 1 - log(2 pi) / 2``."""
    adversary = implicit()
    noise = torch.rand(5, 4, dtype=torch.float64)
    adversary.networks["encoder"] = _Constant(torch.cat([noise, torch.full_like(noise, -1.0)], 1))
    found = adversary.bound(torch.zeros(5, 3, dtype=torch.float64), noise)
    assert float(found) == pytest.approx(1.0 - 0.5 * math.log(2 * math.pi))


class _Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def test_what_the_generator_is_shown() -> None:
    """Inputs, and gradients of mean absolute value one, the second at the FGSM example within range."""
    model, guide, (x, y) = problem()
    adversary = explicit(clip=(0.0, 1.0))
    with attacking(model, guide.rsample()) as network:
        shown = shown_to_generator(network, x, y, adversary)
        slope = network.gradient(x, y)
        stepped = (x + 0.2 * slope.sign()).clamp(0.0, 1.0)
        second = network.gradient(stepped, y)
    assert torch.equal(shown[:, :3], x)
    torch.testing.assert_close(shown[:, 3:6], slope / slope.abs().mean(1, keepdim=True))
    torch.testing.assert_close(shown[:, 6:], second / second.abs().mean(1, keepdim=True))


def test_images() -> None:
    """The networks of this library, on images of an odd size; nothing is remembered of other images."""
    torch.manual_seed(0)
    shown, noise = torch.randn(4, 9, 13, 11), torch.rand(4, 6)
    generator = PerturbationGenerator(3, width=4, blocks=1)
    assert generator(shown).shape == (4, 6, 13, 11)
    torch.testing.assert_close(generator(shown)[:1], generator(shown[:1]))
    noisy = PerturbationGenerator(3, 1, width=4, blocks=1, noise_size=6, image_size=(13, 11))
    made = noisy(shown, noise)
    assert made.shape == (4, 3, 13, 11) and not torch.allclose(made, noisy(shown, -noise))
    assert PerturbationEncoder(3, 6, width=4)(made).shape == (4, 12)
    with pytest.raises(ValueError, match=r"^image_size: "):
        PerturbationGenerator(3, noise_size=6)
    with pytest.raises(ValueError, match=r"^width: "):
        PerturbationGenerator(3, width=0)


def test_mistakes_are_named() -> None:
    model, guide, batch = problem()
    with pytest.raises(ValueError, match=r"^players: AmortizedDistribution has networks of its own"):
        AdversarialTraining(explicit()).loss(model, guide, *batch)
    with pytest.raises(ValueError, match=r"^epsilon: "):
        AmortizedDistribution(nn.Linear(9, 6), 0.0)
    with pytest.raises(TypeError, match=r"^generator: expected a torch.nn.Module"):
        AmortizedDistribution(3, 0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^encoder: expected a torch.nn.Module"):
        ImplicitDistribution(Joined(), None, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^noise_size: "):
        implicit(noise_size=0)
    with pytest.raises(ValueError, match=r"^entropy: "):
        explicit(entropy="median")
    for adversary, named in (
        (AmortizedDistribution(nn.Linear(9, 3).double(), 0.1), "generator"),
        (ImplicitDistribution(Joined().double(), nn.Linear(3, 3).double(), 0.1, noise_size=4), "encoder"),
    ):
        adversary.players()
        with pytest.raises(ValueError, match=f"^{named}: it must return shape"):
            AdversarialTraining(adversary).loss(model, guide, *batch)
    (player,) = explicit().players()
    with pytest.raises(RuntimeError, match=r"^players: the player of AmortizedDistribution learns from the outer"):
        player.objective.backward(model, guide, batch, scale=None)


def test_loss_alone_leaves_no_moves() -> None:
    model, guide, batch = problem()
    adversary = explicit()
    adversary.players()
    elbo = AdversarialTraining(adversary)
    pyro.set_rng_seed(0)
    elbo.loss(model, guide, *batch)
    with pytest.raises(RuntimeError, match=r"^players: "):
        adversary.take_moves()
    assert copy.deepcopy(elbo).perturbation is not adversary
