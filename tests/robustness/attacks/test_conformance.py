"""What every attack guarantees: ball, range and loss, known worst cases, random numbers, and what is refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, DeltaMixture, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.robustness import (
    APGD,
    FGSM,
    LBFGS,
    MIM,
    PGD,
    SPSA,
    Attack,
    CarliniWagnerL2,
    CarliniWagnerMargin,
    Evasion,
    FeatureAttack,
    GradientMaskingWarning,
    QueryBudgetWarning,
    Square,
    Uncertainty,
)
from pyrobnn.training import fit
from tests.conformance.comparisons import assert_same_state, network_state
from tests.sampling.models import loader, normed

FEATURES = FeatureAttack(
    0.2,
    layer="0",
    images=torch.rand(20, 3, generator=torch.Generator().manual_seed(2)),
    labels=torch.arange(20) % 3,
    num_targets=2,
    steps=4,
)

# One of each kind, by norm, with options under which those that raise a loss reach the worst case of a linear model.
LINF: dict[str, Attack] = {
    "FGSM": FGSM(0.2),
    "PGD": PGD(0.2, steps=8),
    "PGD, margin": PGD(0.2, loss="margin", steps=5, restarts=2),
    "MIM": MIM(0.2, steps=5),
    "CarliniWagnerMargin": CarliniWagnerMargin(0.2, steps=5),
    "SPSA": SPSA(0.2, steps=6, directions=5, loss="cross_entropy"),
    "APGD": APGD(0.2, steps=8),
    "Square": Square(0.2, steps=60),
}
L2: dict[str, Attack] = {
    "FGSM": FGSM(0.2, "l2"),
    "PGD": PGD(0.2, "l2", steps=6, step_size=0.2),
    "PGD, margin": PGD(0.2, "l2", loss="margin", steps=5, step_size=0.2, restarts=2),
    "MIM": MIM(0.2, "l2", steps=5),
    "CarliniWagnerMargin": CarliniWagnerMargin(0.2, "l2", steps=5, step_size=0.2),
    "SPSA": SPSA(0.2, "l2", steps=10, directions=12, loss="cross_entropy"),
    "APGD": APGD(0.2, "l2", steps=10),
}
# These do not look for the largest loss in the ball.
OTHER: dict[str, Attack] = {
    "CarliniWagnerL2": CarliniWagnerL2(0.2, steps=8, searches=2, initial_weight=1.0, step_size=0.2),
    "LBFGS": LBFGS(0.2, steps=5, searches=3, initial_weight=1.0),
    "FeatureAttack": FEATURES,
    "PGD on uncertainty": PGD(0.2, steps=3, loss=Uncertainty("mutual_information")),
    "PGD of evasion": PGD(0.2, steps=3, loss=Evasion("variance")),
}
WORST = {f"{name}, {attack.norm}": attack for attacks in (LINF, L2) for name, attack in attacks.items()}
CHEAP = {f"SPSA, {norm}": SPSA(0.2, norm, steps=2, directions=2, loss="cross_entropy") for norm in ("linf", "l2")}
ALL = {**WORST, **CHEAP, **OTHER}
GRADIENT_FREE = {"SPSA", "Square"}

X = torch.rand(8, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 3

every = pytest.mark.parametrize("attack", ALL.values(), ids=ALL)
worst = pytest.mark.parametrize("attack", WORST.values(), ids=WORST)


def with_options(attack: Attack, **options: Any) -> Attack:
    """The same attack with other options."""
    return type(attack)(**{**attack.__dict__, **options})


def small(outputs: int = 3) -> SupervisedModel:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs))
    return SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)


# --------------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("targeted", [False, True])
@worst
def test_the_worst_input_of_a_linear_classifier(attack: Attack, targeted: bool) -> None:
    """The log odds against y change by the dual norm of the weights' difference times the radius, and no more."""
    torch.manual_seed(0)
    model = SupervisedModel(nn.Linear(3, 2), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=8)
    guide, y = MAP(model), torch.arange(8) % 2
    weight = guide.sample(1)["net.weight"][0]
    away = (weight[1 - y] - weight[y]) * (-1 if targeted else 1)
    moved = with_options(attack, targeted=targeted)(model, guide, X, y, num_samples=1, seed=0)
    largest = 0.2 * (away.abs().sum(1) if attack.norm == "linf" else away.norm(dim=1))
    reached = ((moved - X) * away).sum(1)
    assert bool((reached >= 0.99 * largest).all())
    assert bool((reached <= 1.0001 * largest).all())


@worst
def test_the_worst_input_of_a_linear_regression(attack: Attack) -> None:
    if attack.loss == "margin":
        pytest.skip("a margin is one of classes")
    torch.manual_seed(0)
    model = SupervisedModel(nn.Linear(3, 1), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=8)
    guide, y = MAP(model), torch.randn(8, 1)
    draw = guide.sample(1)
    weight = draw["net.weight"][0, 0]
    residual = X @ weight + draw["net.bias"][0] - y[:, 0]
    moved = attack(model, guide, X, y, num_samples=1, seed=0)
    largest = 0.2 * (weight.abs().sum() if attack.norm == "linf" else weight.norm())
    assert bool((((moved - X) @ weight) * residual.sign() >= 0.99 * largest).all())


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    "attack",
    [
        CarliniWagnerL2(steps=80, searches=5, initial_weight=1.0),
        CarliniWagnerL2(clip=(-5.0, 5.0), steps=60, searches=5, initial_weight=1.0),
        LBFGS(),
        LBFGS(clip=(-5.0, 5.0)),
    ],
)
def test_the_closest_other_prediction_of_a_linear_classifier(attack: Attack, targeted: bool) -> None:
    """The distance of the plane where both classes are equal, ``|w x + b| / |w|``, and 0 beyond it."""
    if isinstance(attack, LBFGS) and not targeted:
        pytest.skip("it is targeted")
    torch.manual_seed(0)
    model = SupervisedModel(nn.Linear(3, 2), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=8)
    guide, y = MAP(model), torch.arange(8) % 2
    draw = guide.sample(1)
    outputs = X @ draw["net.weight"][0].T + draw["net.bias"][0]
    sign, weight = (-1 if targeted else 1), draw["net.weight"][0]
    margin = sign * (outputs.gather(1, 1 - y.unsqueeze(1)) - outputs.gather(1, y.unsqueeze(1))).squeeze(1)
    expected = (-margin).clamp_min(0.0) / (weight[1] - weight[0]).norm()
    moved = with_options(attack, targeted=targeted)(model, guide, X, y, num_samples=1, seed=0)
    torch.testing.assert_close((moved - X).norm(dim=1), expected, rtol=0.01, atol=1e-6)


# ----------------------------------------------------------------------------------------------------- guarantees


@pytest.mark.parametrize("draws", ["pinned", "fresh"])
@pytest.mark.parametrize(("epsilon", "clip"), [(0.05, None), (0.4, (0.0, 1.0)), (3.0, (-0.5, 1.5)), (30.0, None)])
@every
def test_inside_ball_and_range_and_not_below_the_clean_loss(
    attack: Attack, epsilon: float, clip: Any, draws: Any
) -> None:
    """At radii where a network is anything but linear, too."""
    if draws == "fresh" and isinstance(attack, FeatureAttack):
        pytest.skip("features are compared under the same draws")
    model = small()
    guide = MeanField(model, init_scale=0.3)
    attack = with_options(attack, epsilon=epsilon, clip=clip)
    found = attack.run(model, guide, X, Y, num_samples=3, draws=draws, seed=0)
    moved = found.inputs
    assert moved.shape == X.shape
    assert float(attack.ball.distance(X, moved).max()) <= epsilon * (1 + 1e-5) + 1e-6
    if clip is not None:
        assert clip[0] <= float(moved.min())
        assert float(moved.max()) <= clip[1]
    assert bool((found.objective >= found.clean_objective).all())
    # The objectives are those of the inputs that are returned.
    again = FGSM(0.0, loss=attack.loss, targeted=attack.targeted).run(model, guide, moved, Y, num_samples=3, seed=0)
    torch.testing.assert_close(again.objective, found.objective)


@every
def test_no_radius_changes_nothing(attack: Attack) -> None:
    model = small()
    assert torch.equal(attack.at(0.0)(model, MAP(model), X, Y), X)


@every
def test_attacks_do_harm(attack: Attack) -> None:
    model = small()
    found = attack.at(2.0).run(model, DeltaMixture(model, 4), X, Y, num_samples=4, seed=0)
    assert float((found.objective - found.clean_objective).mean()) > 0.01


@every
def test_seeds_and_the_random_state(attack: Attack) -> None:
    model = small()
    guide = MeanField(model, init_scale=0.3)
    before = torch.get_rng_state()
    first, second = (attack(model, guide, X, Y, num_samples=2, seed=5) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    third = attack(model, guide, X, Y, num_samples=2)
    torch.manual_seed(7)
    assert torch.equal(attack(model, guide, X, Y, num_samples=2), third)


@every
def test_parts_change_nothing(attack: Attack) -> None:
    if isinstance(attack, LBFGS):
        pytest.skip("all inputs of a part share line searches")
    model = small().double()  # in single precision, rounding grows from step to step
    guide, x = MeanField(model, init_scale=0.3), X.double()
    whole, cut = (attack(model, guide, x, Y, num_samples=2, seed=0, batch_size=size) for size in (None, 3))
    torch.testing.assert_close(cut, whole)


@every
def test_nothing_in_the_model_changes(attack: Attack) -> None:
    model = SupervisedModel(normed(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)
    guide = DeltaMixture(model, 3)
    fit(model, guide, loader(), epochs=1, progress=False)
    model.train()
    for parameter in [*model.parameters(), *guide.parameters()]:
        parameter.grad = None
    before, kept = network_state(model), copy.deepcopy(guide.state_dict())
    x, y = X.clone(), Y % 2
    attack(model, guide, x, y, num_samples=3, seed=3)
    assert_same_state(network_state(model), before)
    assert torch.equal(x, X)
    assert all(torch.equal(value, kept[name]) for name, value in guide.state_dict().items())
    assert all(parameter.grad is None for parameter in [*model.parameters(), *guide.parameters()])


@every
def test_precision_is_kept(attack: Attack) -> None:
    model = small().double()
    moved = attack(model, MAP(model), X.double(), Y, num_samples=1, seed=0)
    assert moved.dtype == torch.float64
    assert moved.device == X.device


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every
def test_results_do_not_depend_on_the_gradient_mode(attack: Attack, mode: Any) -> None:
    model = small()
    guide = MeanField(model, init_scale=0.3)
    expected = attack(model, guide, X, Y, num_samples=2, seed=0)
    with mode():
        assert torch.equal(attack(model, guide, X.clone(), Y.clone(), num_samples=2, seed=0), expected)


# -------------------------------------------------------------------------------------------------------- refusals


@every
def test_bad_inputs(attack: Attack) -> None:
    model = small()
    guide = MAP(model)
    for x, y, kind, message in (
        (X.long(), Y, TypeError, "x: expected a tensor of floating-point inputs"),
        (X * float("nan"), Y, ValueError, "x: it holds NaN or infinite inputs"),
        (X[:3], Y, ValueError, "expected as many targets as inputs"),
        (X, None, TypeError, "y: expected a tensor of targets"),
        (X, Y.unsqueeze(-1), ValueError, "y: Categorical expects targets of shape"),
    )[: None if attack.objective_loss().needs_targets else 2]:
        with pytest.raises(kind, match=message):
            attack(model, guide, x, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x: inputs reach from .* beyond clip"):
        with_options(attack, clip=(0.0, 0.5))(model, guide, X, Y)
    with pytest.raises(ValueError, match="epsilon: expected a radius"):
        attack.at(-0.1)


@every
def test_losses_of_classes_need_classes(attack: Attack) -> None:
    model = SupervisedModel(nn.Linear(3, 1), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=8)
    if attack.objective_loss().needs_classes or isinstance(attack, LBFGS):
        with pytest.raises(TypeError, match=r"loss: \w+ needs class probabilities, but the likelihood is Normal"):
            attack(model, MAP(model), X, torch.randn(8, 1))
    else:
        attack(model, MAP(model), X, torch.randn(8, 1))


class Quantized(nn.Module):
    """Integers, which have no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return (10 * x).long().float()


@every
def test_the_module_that_stops_the_gradient_is_named(attack: Attack, request: pytest.FixtureRequest) -> None:
    net = nn.Sequential(nn.Linear(3, 6), Quantized(), nn.Linear(6, 3))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)
    if type(attack).__name__ in GRADIENT_FREE or isinstance(attack, FeatureAttack):  # of a layer before it
        attack(model, MAP(model), X, Y, num_samples=1, seed=0)
        return
    with pytest.raises(ValueError, match=r"model: .* its module '[\w.]*1' \(Quantized\) stops it"):
        attack(model, MAP(model), X, Y, num_samples=1)


class Rounded(nn.Module):
    """Steps, whose derivative is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return (10 * x).round()


def test_the_module_whose_derivative_is_zero_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 6), Rounded(), nn.Linear(6, 3))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)
    with pytest.warns(GradientMaskingWarning, match=r"its module '[\w.]*1' \(Rounded\) is 0 for all inputs"):
        assert torch.equal(FGSM(0.1)(model, MAP(model), X, Y, num_samples=1), X)


@every
def test_a_budget_that_is_used_up(attack: Attack) -> None:
    """What was found so far is returned, with a warning; enough queries change nothing."""
    model = small()
    guide = MAP(model)
    free = attack.run(model, guide, X, Y, num_samples=1, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough = attack.run(model, guide, X, Y, num_samples=1, seed=0, max_queries=free.queries)
    assert torch.equal(enough.inputs, free.inputs)
    if free.queries > 4:
        with pytest.warns(QueryBudgetWarning, match="max_queries: .* used up its 2 evaluations"):
            cut = attack.run(model, guide, X, Y, num_samples=1, seed=0, max_queries=2)
        assert cut.queries <= 4
        assert bool((cut.objective >= cut.clean_objective).all())
