"""Linear regressions on a network's features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrobnn.decisions import LinearRewards, NeuralLinearRewards, ThompsonSampling, play
from tests.decisions.test_bandits import linear

OPTIONS = {"steps": 40, "first_steps": 200, "options": {"lr": 1e-2, "seed": 0}}


def body() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU())


def test_on_the_contexts_themselves_it_is_the_linear_posterior_also_after_refits() -> None:
    found = NeuralLinearRewards(nn.Identity(), 3, 4, noise=0.2, prior_scale=2.0, refit_every=4, steps=1, first_steps=1)
    expected = LinearRewards(3, 4, noise=0.2, prior_scale=2.0)
    bandit = linear(11, 0)
    for index, (context, rewards) in enumerate(zip(bandit.contexts, bandit.rewards, strict=True)):
        for each in (found, expected):
            each.observe(context, index % 4, float(rewards[index % 4]))
    for ours, theirs in zip(found.moments(bandit.contexts[0]), expected.moments(bandit.contexts[0]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_refit_trains_the_features_and_adds_everything_anew() -> None:
    """Against one regression of all rows on the features after the refit; the given module is not changed."""
    net = body()
    before = net[0].weight.detach().clone()
    found = NeuralLinearRewards(net, 16, 4, noise=0.1, refit_every=20, **OPTIONS)  # type: ignore[arg-type]
    bandit = linear(23, 0)
    untrained = found.features(bandit.contexts)
    torch.testing.assert_close(untrained, net(bandit.contexts))
    for index, (context, rewards) in enumerate(zip(bandit.contexts, bandit.rewards, strict=True)):
        found.observe(context, index % 4, float(rewards[index % 4]))
    assert torch.equal(net[0].weight, before)
    features = found.features(bandit.contexts)
    assert float((features - untrained).abs().max()) > 0.1
    expected = LinearRewards(16, 4, noise=0.1)
    for index, (row, rewards) in enumerate(zip(features, bandit.rewards, strict=True)):
        expected.observe(row, index % 4, float(rewards[index % 4]))
    for ours, theirs in zip(found.moments(bandit.contexts[5]), expected.moments(features[5]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_thompson_sampling_learns() -> None:
    """Regret of the last 50 of 120 rounds is below half of that of the 50 after the initial pulls."""
    run = play(ThompsonSampling(NeuralLinearRewards(body(), 16, 4, refit_every=20, **OPTIONS)), linear(120, 0), seed=0)  # type: ignore[arg-type]
    assert float(run.regrets[-50:].mean()) < 0.5 * float(run.regrets[12:62].mean())


def test_bad_input_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^body: "):
        NeuralLinearRewards(torch.relu, 3, 2)  # type: ignore[arg-type]
    for options, name in (
        ({"num_features": 0}, "num_features"),
        ({"num_arms": 0}, "num_arms"),
        ({"noise": 0.0}, "noise"),
        ({"prior_scale": -1.0}, "prior_scale"),
        ({"refit_every": 0}, "refit_every"),
        ({"steps": 0}, "steps"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            NeuralLinearRewards(body(), **({"num_features": 16, "num_arms": 4} | options))  # type: ignore[arg-type]
