"""AutoAttack's parts: losses without scale, adaptive steps, projections to planes, boxes, and the suite."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.robustness import APGD, DLR, FAB, PGD, APGDTargeted, AutoAttack, Square, auto_attack
from pyrobnn.robustness.attacks.dlr import TargetedDLR
from pyrobnn.robustness.attacks.fab import project_to_plane
from pyrobnn.training import fit

X = torch.rand(12, 6, generator=torch.Generator().manual_seed(1))


def linear(classes: int, inputs: int = 6) -> tuple[SupervisedModel, MAP]:
    torch.manual_seed(0)
    model = SupervisedModel(nn.Linear(inputs, classes), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=12)
    return model, MAP(model)


def labels(model: SupervisedModel, guide: Any, x: Tensor) -> Tensor:
    """What the model predicts, so that every input is right before an attack."""
    draw = guide.sample(1)
    return (x.flatten(1) @ draw["net.weight"][0].T + draw["net.bias"][0]).argmax(1)


# --------------------------------------------------------------------------------------------------------- losses


def test_dlr_by_hand_and_without_scale() -> None:
    """Logits 3, 1, 0, 2 and label 0: -(3 - 2)/(3 - 1); toward class 2: -(3 - 0)/(3 - (1 + 0)/2). Shift and scale do
    not count."""
    z, y = torch.tensor([[3.0, 1.0, 0.0, 2.0]]), torch.tensor([0])
    for moved in (z, z + 5.0, 7.0 * z):
        assert float(DLR().value(moved, y)) == pytest.approx(-0.5)
        assert float(TargetedDLR().value(moved, torch.tensor([[0, 2]]))) == pytest.approx(-1.2)
    assert float(DLR().value(z, torch.tensor([3]))) == pytest.approx(0.5)  # wrong: positive
    with pytest.raises(ValueError, match="DLR compares 3 classes, but there are 2"):
        DLR().value(z[:, :2], y)
    with pytest.raises(ValueError, match="targeted DLR compares 4 classes, but there are 3"):
        TargetedDLR().value(z[:, :3], torch.tensor([[0, 2]]))


# --------------------------------------------------------------------------------------------------------- planes


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_to_a_plane_is_the_least_change(norm: str, clip: Any) -> None:
    """It reaches the plane, stays in the range, and no random change that does is shorter; against bisection."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 5, generator=generator, dtype=torch.double)
    g = torch.randn(20, 5, generator=generator, dtype=torch.double)
    v = 0.5 * torch.randn(20, generator=generator, dtype=torch.double)
    found = project_to_plane(x, g, v, norm, clip)
    order = math.inf if norm == "linf" else 2.0
    direction = -v.sign().unsqueeze(1) * (g.sign() if norm == "linf" else g)
    low, high = torch.zeros(20, 1, dtype=torch.double), torch.full((20, 1), 1e3, dtype=torch.double)
    for _ in range(100):  # the amount along a direction that is cut to the range
        middle = (low + high) / 2
        end = x + middle * direction
        value = v + (((end if clip is None else end.clamp(*clip)) - x) * g).sum(1)
        is_beyond = (value.sign() != v.sign()).unsqueeze(1)
        low, high = torch.where(is_beyond, low, middle), torch.where(is_beyond, middle, high)
    expected = (x + high * direction if clip is None else (x + high * direction).clamp(*clip)) - x
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)
    reached = v + (found * g).sum(1)
    can = (high < 999).squeeze(1)
    assert can.sum() >= 10
    torch.testing.assert_close(reached[can], torch.zeros_like(reached[can]), atol=1e-9, rtol=0.0)
    noise = torch.randn(200, 20, 5, generator=generator, dtype=torch.double)
    other = x + found + 0.05 * noise
    other = (other if clip is None else other.clamp(*clip)) - x
    crosses = (v + (other * g).sum(-1)).sign() != v.sign()
    longer = other.norm(order, dim=-1) >= found.norm(order, dim=-1) - 1e-9
    assert bool((longer | ~crosses)[:, can].all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_finds_the_distance_to_a_linear_boundary(norm: Any) -> None:
    """Radii just above the exact least distance succeed, just below they fail: two classes, so one boundary."""
    model, guide = linear(2)
    draw = guide.sample(1)
    w = draw["net.weight"][0, 1] - draw["net.weight"][0, 0]
    b = draw["net.bias"][0, 1] - draw["net.bias"][0, 0]
    y = labels(model, guide, X)
    exact = (X @ w + b).abs() / (w.abs().sum() if norm == "linf" else w.norm())
    nearest = exact.argmin()
    x, y = X[nearest : nearest + 1], y[nearest : nearest + 1]
    for factor, is_beaten in ((1.02, True), (0.98, False)):
        found = FAB(factor * float(exact[nearest]), norm, steps=20).run(model, guide, x, y, num_samples=1, seed=0)
        assert bool(found.objective > 0) == is_beaten


# ----------------------------------------------------------------------------------------------------------- APGD


@pytest.mark.parametrize(
    "attack",
    [
        APGD(0.3, loss="margin", steps=30),
        APGD(0.3, loss=DLR(), steps=30),
        APGDTargeted(0.3, steps=30),
        Square(0.3, steps=300),
    ],
)
def test_the_margin_of_a_linear_model_with_many_classes(attack: Any) -> None:
    """The largest margin in the ball is the maximum over classes of the clean one plus ε times the dual norm."""
    model, guide = linear(5)
    draw, x = guide.sample(1), 3.0 * (X - 0.5)
    weight, y = draw["net.weight"][0], labels(model, guide, x)
    logits = x @ weight.T + draw["net.bias"][0]
    gaps = logits - logits.gather(1, y.unsqueeze(1)) + 0.3 * (weight - weight[y].unsqueeze(1)).abs().sum(-1)
    largest = gaps.scatter(1, y.unsqueeze(1), -math.inf).amax(1)
    moved = attack(model, guide, x, y, num_samples=1, seed=0)
    reached = moved @ weight.T + draw["net.bias"][0]
    margin = (reached - reached.gather(1, y.unsqueeze(1))).scatter(1, y.unsqueeze(1), -math.inf).amax(1)
    assert bool((margin <= largest + 1e-5).all())
    beatable = largest > 0.02  # suites stop at a success, so what counts is whether inputs are beaten
    assert int(beatable.sum()) == 10
    assert torch.equal(margin > 0, beatable)


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("kind", [APGDTargeted, FAB, AutoAttack])
def test_suites_stay_in_the_ball_and_do_not_lower_the_margin(kind: Any, clip: Any) -> None:
    model, guide, x, y = trained()
    x = x.clamp(0.0, 1.0)
    options = {"queries": 30} if kind is AutoAttack else {}
    for norm in ("linf", "l2"):
        attack = kind(0.25, norm, clip, steps=8, **options)
        found = attack.run(model, guide, x, y, num_samples=2, seed=0)
        assert bool(attack.ball.contains(x, found.inputs).all())
        assert bool((found.objective >= found.clean_objective).all())
        assert bool((found.objective > 0).any())


def test_apgd_needs_no_step_size() -> None:
    """On a rugged loss it reaches at least what PGD with its best of several steps reaches."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 3.0), num_data=12)
    guide, y = MeanField(model, init_scale=0.5), torch.arange(12) % 3
    options: dict[str, Any] = {"num_samples": 3, "seed": 0}
    adaptive = APGD(1.0, steps=40).run(model, guide, X, y, **options).objective.mean()
    fixed = [PGD(1.0, steps=40, step_size=s).run(model, guide, X, y, **options).objective.mean() for s in (0.02, 0.3)]
    assert float(adaptive) >= float(max(fixed)) * 0.97


def test_apgd_costs_one_gradient_a_step() -> None:
    model, guide = linear(4)
    found = APGD(0.1, steps=30).run(model, guide, X, labels(model, guide, X), num_samples=1, seed=0)
    assert found.queries == 30 + 2  # the last iterate and the clean inputs have no gradient


# ---------------------------------------------------------------------------------------------------------- Square


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(6,), (3, 8), (2, 5, 7)])
def test_square_takes_inputs_of_any_shape(shape: tuple[int, ...], norm: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4)
    x = torch.rand(4, *shape)
    found = Square(0.3, norm, (0.0, 1.0), steps=60).run(
        model, MAP(model), x, torch.arange(4) % 3, num_samples=1, seed=0
    )
    assert bool((found.objective > found.clean_objective + 0.01).all())


def test_the_share_of_a_box_is_halved_on_the_papers_schedule() -> None:
    attack = Square(0.1, steps=10_000)
    shares = [attack.share_at(step) for step in (0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert shares == [0.8 / 2**k for k in range(10)]
    assert Square(0.1, steps=1000).share_at(6) == 0.4 / 2


# ----------------------------------------------------------------------------------------------------------- suites


def trained() -> tuple[SupervisedModel, MeanField, Tensor, Tensor]:
    torch.manual_seed(0)
    y = torch.arange(40) % 4
    centers = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    x = centers[y] + 0.15 * torch.randn(40, 2)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 4))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=40)
    guide = MeanField(model)
    fit(model, guide, [(x, y)], epochs=150, lr=0.05, progress=False, seed=0)
    return model, guide, x, y


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_suite_is_at_least_as_strong_as_each_attack(norm: Any) -> None:
    model, guide, x, y = trained()
    options: dict[str, Any] = {"num_samples": 3, "seed": 0}
    suite = AutoAttack(0.3, norm, steps=20, queries=100)
    robust = suite.run(model, guide, x, y, **options).objective <= 0
    for attack in (PGD(0.3, norm, loss="margin"), *suite.attacks(4)):
        moved = attack(model, guide, x, y, **options)
        survives = PGD(0.0, norm, loss="margin").run(model, guide, moved, y, **options).objective <= 0
        assert int(survives.sum()) >= int(robust.sum()), attack
    found = auto_attack(model, guide, x, y, 0.3, norm=norm, steps=20, queries=100, num_samples=3, seed=0)
    shares = list(found.accuracies.values())
    assert [*found.accuracies] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert found.natural_accuracy >= shares[0] >= shares[1] >= shares[2] >= shares[3] == found.robust_accuracy
    assert 0.0 < found.robust_accuracy < found.natural_accuracy
    assert "APGD-T" in str(found)


def test_repeats_and_fresh_draws_are_worst_cases() -> None:
    """More repeats never leave more inputs right; what is called robust survives the attack of each repeat."""
    model, guide, x, y = trained()
    options: dict[str, Any] = {"steps": 10, "queries": 20, "num_samples": 2, "seed": 4}
    one, three = (auto_attack(model, guide, x, y, 0.2, repeats=count, **options) for count in (1, 3))
    assert bool((one.robust | ~three.robust).all())
    rand = auto_attack(model, guide, x, y, 0.2, version="rand", repeats=2, **options)
    assert [*rand.accuracies] == ["APGD-CE", "APGD-DLR"]
    assert torch.equal(rand.inputs[rand.robust], x[rand.robust])
    again = auto_attack(model, guide, x, y, 0.2, version="rand", repeats=2, **options)
    assert torch.equal(rand.inputs, again.inputs)


def test_two_classes_have_margins_instead() -> None:
    model, guide = linear(2)
    found = auto_attack(model, guide, X, labels(model, guide, X), 0.5, steps=10, queries=20, num_samples=1, seed=0)
    assert [*found.accuracies] == ["APGD-CE", "APGD-margin", "FAB-T", "Square"]


def test_bad_options_are_named() -> None:
    model, guide = linear(4)
    for make, message in (
        (lambda: APGD(0.1, steps=0), "steps"),
        (lambda: APGD(0.1, rho=1.5), "rho"),
        (lambda: APGDTargeted(0.1, targeted=True), "targeted"),
        (lambda: APGDTargeted(0.1, loss="cross_entropy"), "loss: results are compared"),
        (lambda: FAB(0.1, bias=2.0), "bias"),
        (lambda: FAB(0.1, targeted=True), "targeted"),
        (lambda: Square(0.1, share=2.0), "share"),
        (lambda: AutoAttack(0.1, version="fast"), "version"),
        (lambda: AutoAttack(0.1, queries=0), "queries"),
        (lambda: auto_attack(model, guide, X, X[:, 0].long(), 0.1, repeats=0), "repeats"),
    ):
        with pytest.raises(ValueError, match=message):
            make()  # type: ignore[no-untyped-call]
    regression = SupervisedModel(nn.Linear(6, 1), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=8)
    with pytest.raises(TypeError, match="needs class probabilities"):
        auto_attack(regression, MAP(regression), X, torch.randn(12, 1), 0.1)
