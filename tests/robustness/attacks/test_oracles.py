"""The same attacks of foolbox and torchattacks on the same network, where these are installed (without their pins)."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.robustness import FGSM, MIM, PGD, Attack, CarliniWagnerL2

EPSILON, STEP, STEPS = 0.1, 0.02, 10


class Images(nn.Module):
    """A small convolutional network of images [N, 1, 6, 6], since both packages take images."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def problem() -> tuple[nn.Module, SupervisedModel, MAP, Tensor, Tensor]:
    """A network, the same as a model whose posterior is a point, and images with the labels that it predicts."""
    torch.manual_seed(0)
    net = Images()
    model = SupervisedModel(Images(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=16)
    guide = MAP(model)
    draw = guide.sample(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(3.0 * draw[f"net.{name}"][0])
    scaled = {name: 3.0 * value for name, value in draw.items()}
    x = 0.2 + 0.6 * torch.rand(16, 1, 6, 6)
    return net.eval(), model, scaled, x, net(x).argmax(1)  # type: ignore[return-value]


def losses(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(net(x), y, reduction="none")


# ------------------------------------------------------------------------------------------------------ torchattacks

TORCHATTACKS: dict[str, tuple[Any, Attack]] = {
    "FGSM": (lambda t, net: t.FGSM(net, eps=EPSILON), FGSM(EPSILON, clip=(0.0, 1.0))),
    "PGD": (
        lambda t, net: t.PGD(net, eps=EPSILON, alpha=STEP, steps=STEPS, random_start=False),
        PGD(EPSILON, clip=(0.0, 1.0), steps=STEPS, step_size=STEP, random_start=False),
    ),
    "PGD, l2": (
        lambda t, net: t.PGDL2(net, eps=5 * EPSILON, alpha=5 * STEP, steps=STEPS, random_start=False),
        PGD(5 * EPSILON, "l2", clip=(0.0, 1.0), steps=STEPS, step_size=5 * STEP, random_start=False),
    ),
    "MIM": (
        lambda t, net: t.MIFGSM(net, eps=EPSILON, alpha=STEP, steps=STEPS, decay=1.0),
        MIM(EPSILON, clip=(0.0, 1.0), steps=STEPS, step_size=STEP),
    ),
}


@pytest.mark.parametrize("name", TORCHATTACKS)
def test_torchattacks(name: str) -> None:
    """The same inputs; ours keeps the best iterate, so that it is the last one where the loss only rises."""
    torchattacks = pytest.importorskip("torchattacks")
    net, model, draws, x, y = problem()
    theirs, ours = TORCHATTACKS[name]
    expected = theirs(torchattacks, net)(x, y)
    found = ours(model, draws, x, y, num_samples=1)
    assert bool((losses(net, found, y) >= losses(net, expected, y) - 1e-6).all())
    same = (found - expected).abs().reshape(16, -1).amax(1) < 1e-5
    assert float(same.float().mean()) >= 0.8


# ----------------------------------------------------------------------------------------------------------- foolbox


@pytest.mark.parametrize("name", ["FGSM", "PGD", "PGD, l2"])
def test_foolbox(name: str) -> None:
    foolbox = pytest.importorskip("foolbox")
    net, model, draws, x, y = problem()
    attacks = foolbox.attacks
    theirs, ours = {
        "FGSM": (attacks.LinfFastGradientAttack(random_start=False), FGSM(EPSILON, clip=(0.0, 1.0))),
        "PGD": (
            attacks.LinfProjectedGradientDescentAttack(abs_stepsize=STEP, steps=STEPS, random_start=False),
            TORCHATTACKS["PGD"][1],
        ),
        "PGD, l2": (
            attacks.L2ProjectedGradientDescentAttack(abs_stepsize=5 * STEP, steps=STEPS, random_start=False),
            TORCHATTACKS["PGD, l2"][1],
        ),
    }[name]
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, expected, _ = theirs(wrapped, x, y, epsilons=ours.epsilon)
    found = ours(model, draws, x, y, num_samples=1)
    assert bool((losses(net, found, y) >= losses(net, expected, y) - 1e-6).all())
    same = (found - expected).abs().reshape(16, -1).amax(1) < 1e-5
    assert float(same.float().mean()) >= 0.8


def test_foolbox_carlini_wagner() -> None:
    """Distances of the closest successes; ours are not larger than 2 % above theirs."""
    foolbox = pytest.importorskip("foolbox")
    net, model, draws, x, y = problem()
    theirs = foolbox.attacks.L2CarliniWagnerAttack(steps=300, binary_search_steps=6, stepsize=0.01, initial_const=0.1)
    _, expected, success = theirs(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=None)
    ours = CarliniWagnerL2(clip=(0.0, 1.0), steps=300, searches=6, step_size=0.01, initial_weight=0.1)
    found = ours(model, draws, x, y, num_samples=1)
    assert bool(success.all())
    assert bool((net(found).argmax(1) != y).all())
    distances = [(moved - x).reshape(16, -1).norm(dim=1) for moved in (found, expected)]
    assert bool((distances[0] <= 1.02 * distances[1]).all())


# -------------------------------------------------------------------------------------------------------- constants

PUBLISHED = {"FGSM": 1.222562, "PGD": 1.235032, "PGD, l2": 1.246123, "MIM": 1.232215}
"""Mean cross entropies of the inputs that torchattacks 3.5.1 found."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_that_torchattacks_reached(name: str) -> None:
    net, model, draws, x, y = problem()
    found = TORCHATTACKS[name][1](model, draws, x, y, num_samples=1)
    assert float(losses(net, found, y).mean()) == pytest.approx(PUBLISHED[name], abs=2e-5)


def test_distance_that_foolbox_reached() -> None:
    """The mean of foolbox 3.3.4 with 300 steps and six weights is 0.1333; fewer steps come as near."""
    _, model, draws, x, y = problem()
    ours = CarliniWagnerL2(clip=(0.0, 1.0), steps=60, searches=4, step_size=0.02, initial_weight=0.1)
    found = ours(model, draws, x, y, num_samples=1)
    assert float((found - x).reshape(16, -1).norm(dim=1).mean()) == pytest.approx(0.1333, rel=0.02)
