"""Attacks on posteriors: exact worst inputs, the mean of probabilities, statistics of members, models of one's own."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, DeltaMixture, MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.robustness import FGSM, PGD
from pyrobnn.training import fit
from tests.conformance.comparisons import assert_same_state, network_state
from tests.sampling.models import loader, normed


def linear() -> tuple[SupervisedModel, MAP]:
    """A linear classifier of three inputs and two classes."""
    model = SupervisedModel(nn.Linear(3, 2), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=8)
    return model, MAP(model)


def small() -> SupervisedModel:
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    return SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)


X = torch.rand(8, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 2


# --------------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("attack", [FGSM, PGD])
def test_the_worst_input_of_a_linear_classifier(attack: Any) -> None:
    """The loss of class y rises along the other class's weights minus its own, so the corner in that direction."""
    model, guide = linear()
    weight = guide.sample(1)["net.weight"][0]
    away = (weight[1 - Y] - weight[Y]).sign()
    adversarial = attack(0.2)(model, guide, X, Y, num_samples=1)
    torch.testing.assert_close(adversarial, X + 0.2 * away)
    toward = attack(0.2, targeted=True)(model, guide, X, Y, num_samples=1)
    torch.testing.assert_close(toward, X - 0.2 * away)


def test_regression() -> None:
    """The density of a target falls away from it: the input moves the prediction further off."""
    model = SupervisedModel(nn.Linear(3, 1), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=8)
    guide, y = MAP(model), torch.randn(8, 1)
    draw = guide.sample(1)
    residual = X @ draw["net.weight"][0].T + draw["net.bias"][0] - y
    expected = X + 0.1 * (residual.sign() * draw["net.weight"][0].sign())
    torch.testing.assert_close(FGSM(0.1)(model, guide, X, y, num_samples=1), expected)


def test_the_gradient_is_that_of_the_mean_probability() -> None:
    """Against autograd through ``log mean_k p_k``, for five draws one of which is all but certain."""
    model = small()
    draws = MeanField(model, init_scale=0.5).sample(5)
    draws["net.2.weight"][3] *= 30.0
    labels = torch.arange(8) % 3
    leaf = X.clone().requires_grad_()
    hidden = torch.tanh(leaf @ draws["net.0.weight"].mT + draws["net.0.bias"].unsqueeze(1))
    logits = hidden @ draws["net.2.weight"].mT + draws["net.2.bias"].unsqueeze(1)
    loss = F.nll_loss(logits.softmax(-1).mean(0).log(), labels, reduction="sum")
    expected = X + 0.1 * torch.autograd.grad(loss, leaf)[0].sign()
    assert torch.equal(FGSM(0.1)(model, draws, X, labels, num_samples=5), expected)
    assert torch.equal(FGSM(0.1)(model, draws, X, labels, num_samples=5, batch_size=3), expected)
    each = [FGSM(0.1)(model, {n: v[k : k + 1] for n, v in draws.items()}, X, labels, num_samples=1) for k in range(5)]
    assert not any(torch.equal(one, expected) for one in each)


def test_more_steps_do_more_harm() -> None:
    model = small()
    guide = DeltaMixture(model, 4)
    labels = torch.arange(8) % 3

    def log_prob(x: Tensor) -> float:
        return float(predict(model, guide, x, 4, seed=0).log_prob(labels).mean())

    attacked = [
        log_prob(FGSM(1.0)(model, guide, X, labels, num_samples=4)),
        log_prob(PGD(1.0, steps=30)(model, guide, X, labels, num_samples=4)),
    ]
    assert log_prob(X) > attacked[0] >= attacked[1]


# ------------------------------------------------------------------------------------------------- ball and range


@given(
    epsilon=st.floats(0.0, 2.0),
    steps=st.integers(1, 4),
    random_start=st.booleans(),
    clip=st.sampled_from([None, (0.0, 1.0), (-0.5, 1.5)]),
)
def test_inputs_stay_in_the_ball_and_the_range(
    epsilon: float, steps: int, random_start: bool, clip: tuple[float, float] | None
) -> None:
    model, guide = linear()
    attack = PGD(epsilon, clip=clip, steps=steps, random_start=random_start)
    found = attack(model, guide, X, Y, num_samples=1)
    assert found.shape == X.shape
    assert float((found - X).abs().max()) <= epsilon + 1e-6
    if clip is not None:
        assert clip[0] <= float(found.min())
        assert float(found.max()) <= clip[1]


def test_no_radius_changes_nothing() -> None:
    model, guide = linear()
    for attack in (FGSM, PGD):
        assert torch.equal(attack(0.0)(model, guide, X, Y), X)


def test_a_random_start_is_random_and_seeded() -> None:
    model, guide = linear()
    first, second, third = (
        PGD(0.3, steps=1, step_size=1e-6, restarts=5)(model, guide, X, Y, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert float((first - X).abs().max()) > 0.15


# ---------------------------------------------------------------------------------------------------------- state


def test_nothing_in_the_model_changes() -> None:
    model = SupervisedModel(normed(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)
    guide = DeltaMixture(model, 3)
    fit(model, guide, loader(), epochs=1, progress=False)
    model.train()
    for parameter in [*model.parameters(), *guide.parameters()]:
        parameter.grad = None
    before, random = network_state(model), torch.get_rng_state()
    x, kept = X.clone(), copy.deepcopy(guide.state_dict())
    PGD(0.1, steps=2)(model, guide, x, Y, num_samples=3, seed=3)
    assert_same_state(network_state(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, X)
    assert all(torch.equal(value, kept[name]) for name, value in guide.state_dict().items())
    assert all(parameter.grad is None for parameter in [*model.parameters(), *guide.parameters()])


def test_members_are_attacked_with_their_own_statistics() -> None:
    model = SupervisedModel(normed(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)
    guide = DeltaMixture(model, 2)
    fit(model, guide, loader(), epochs=3, progress=False)
    both = guide.sample(2)
    both.buffers["net.net.1.running_mean"] += 3.0
    found = FGSM(0.1)(model, both, X, Y, num_samples=2)
    bare = FGSM(0.1)(model, dict(both), X, Y, num_samples=2)
    assert not torch.equal(found, bare)


def test_a_model_of_ones_own() -> None:
    net = bayesianize(nn.Linear(3, 2), dist.Normal(0.0, 1.0))
    guide = MAP(net)
    weight = guide.sample(1)["weight"][0]
    found = FGSM(0.2)(net, guide, X, Y, num_samples=1, likelihood=likelihoods.Categorical())
    torch.testing.assert_close(found, X + 0.2 * (weight[1 - Y] - weight[Y]).sign())


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"epsilon": float("inf")}, ValueError, "epsilon: expected a radius"),
        ({"norm": "l1"}, ValueError, "norm: expected one of"),
        ({"clip": (1.0, 0.0)}, ValueError, "clip: expected"),
        ({"loss": "hinge"}, ValueError, "loss: expected one of"),
        ({"targeted": 1}, TypeError, "targeted: expected True or False"),
        ({"steps": 0}, ValueError, "steps: expected a positive int"),
        ({"step_size": 0.0}, ValueError, "step_size: expected a positive number"),
        ({"restarts": 2, "random_start": False}, ValueError, "restarts: without random_start"),
    ],
)
def test_bad_options(options: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        PGD(**{"epsilon": 0.1} | options)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected a positive int"),
        ({"num_samples": 0}, ValueError, "num_samples: expected a positive int"),
        ({"max_queries": 0}, ValueError, "max_queries: expected a positive int"),
        ({"draws": "new"}, ValueError, "draws: expected 'pinned' or 'fresh'"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, "x: expected inputs"),
        ({"guide": {"net.weight": torch.zeros(1, 2, 3)}, "num_samples": 1}, ValueError, "guide: it lacks the model's"),
        (
            {"guide": {"net.weight": torch.zeros(1, 2, 3), "net.bias": torch.zeros(1, 2)}, "draws": "fresh"},
            ValueError,
            "draws: 'fresh' ones need a guide",
        ),
        ({"guide": 3}, TypeError, "guide: expected one of pyrobnn.guides or draws"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type, message: str) -> None:
    model, guide = linear()
    with pytest.raises(kind, match=message):
        PGD(0.1)(model, **{"guide": guide, "x": X, "y": Y} | options)
