"""FGSM and PGD as inner players: closed forms on a linear model, ball and range, composition with guides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrobnn.objectives import Objective
from pyrobnn.robustness.training import AdversarialTraining, FastGradient, ProjectedGradient
from pyrobnn.robustness.training.attacked import attacking
from tests.conformance.comparisons import assert_same
from tests.conformance.objective_suite import ObjectiveConformance
from tests.conformance.perturbation_suite import PerturbationConformance
from tests.robustness.training.problems import FAMILIES, fitted, linear_problem, problem


class TestPGD(ObjectiveConformance):
    def make(self) -> Objective:
        return AdversarialTraining(ProjectedGradient(0.1, steps=2))


class TestFGSM(ObjectiveConformance):
    def make(self) -> Objective:
        return AdversarialTraining(FastGradient(0.1, norm="l2"), num_particles=2)


class TestPGDPerturbation(PerturbationConformance):
    def make(self, epsilon: float, clip: tuple[float, float] | None) -> ProjectedGradient:
        return ProjectedGradient(epsilon, clip=clip, steps=3)


class TestFGSMPerturbation(PerturbationConformance):
    def make(self, epsilon: float, clip: tuple[float, float] | None) -> FastGradient:
        return FastGradient(epsilon, clip=clip, random_start=True)


class TestEuclidean(PerturbationConformance):
    def make(self, epsilon: float, clip: tuple[float, float] | None) -> ProjectedGradient:
        return ProjectedGradient(epsilon, clip=clip, norm="l2", steps=3)


def worst(player: ProjectedGradient) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of the linear problem, perturbed ones, their losses, and the largest losses in the ball."""
    model, guide, (x, y) = linear_problem()
    torch.manual_seed(0)
    draw = guide.rsample()
    weight = draw["net.weight"].detach()
    slope = torch.stack([weight[1 - label] - weight[label] for label in y.tolist()])
    with attacking(model, draw) as network:
        moved = player(network, x, y)
        norm = slope.abs().sum(1) if player.ball.__class__.__name__ == "LInf" else slope.norm(dim=1)
        logits = network.outputs(x)
        margin = logits.gather(1, 1 - y.unsqueeze(1)) - logits.gather(1, y.unsqueeze(1))
        largest = torch.nn.functional.softplus(margin.squeeze(1) + player.epsilon * norm)
        return x, moved, network.losses(moved, y).detach(), largest.detach()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", [FastGradient, ProjectedGradient])
def test_a_linear_model_is_taken_to_its_worst_case(norm: str, kind: type) -> None:
    """Of two classes: ``softplus(margin + epsilon * dual norm of the slope)``; FGSM to rounding, PGD within 1 %."""
    x, moved, losses, largest = worst(kind(0.3, norm=norm))
    torch.testing.assert_close(losses, largest, rtol=1e-12 if kind is FastGradient else 1e-2, atol=0.0)
    assert bool((losses <= largest * (1 + 1e-9)).all())
    assert float((moved - x).flatten(1).norm(dim=1, p=2 if norm == "l2" else float("inf")).max()) <= 0.3 * (1 + 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [FastGradient, ProjectedGradient])
def test_radius_zero_is_plain_training(family: str, kind: type) -> None:
    expected, _ = fitted(family, AdversarialTraining(FastGradient(0.0)), epochs=1)
    found, _ = fitted(family, AdversarialTraining(kind(0.0)), epochs=1)
    assert_same(found.state_dict(), expected.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_loss_under_attack(family: str) -> None:
    """Labels that can be learned: after 80 steps against PGD, less than before, for every family."""
    model, guide, (x, _) = problem(family, batch_norm=False)
    y = x.argmax(1)
    attack = ProjectedGradient(0.05, steps=3)

    def attacked() -> float:
        torch.manual_seed(0)
        found = []
        for _ in range(5):
            with attacking(model, guide.rsample()) as network:
                found.append(float(network.losses(attack(network, x, y), y).mean().detach()))
        return sum(found) / 5

    before = attacked()
    optimizer, elbo = torch.optim.Adam(guide.parameters(), lr=0.02), AdversarialTraining(attack, temperature=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        elbo.backward(model, guide, (x, y), scale=None)
        optimizer.step()
    assert attacked() < 0.9 * before


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"epsilon": 0.1, "norm": "l7"}, ValueError, "norm"),
        ({"epsilon": 0.1, "steps": 0}, ValueError, "steps"),
        ({"epsilon": 0.1, "step_size": -1.0}, ValueError, "step_size"),
        ({"epsilon": 0.1, "random_start": 1}, TypeError, "random_start"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=f"^{named}: "):
        ProjectedGradient(**options)
