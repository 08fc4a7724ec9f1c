"""Posteriors over rewards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.decisions import LinearRewards, NeuralRewards, ThompsonSampling, play
from tests.decisions.test_bandits import linear


def observed(rewards: LinearRewards, count: int = 30) -> tuple[Tensor, Tensor]:
    """Contexts and rewards of the second arm."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=generator).double()
    y = x @ torch.tensor([1.0, -2.0]).double() + 0.5 * torch.randn(count, generator=generator).double()
    for context, reward in zip(x, y, strict=True):
        rewards.observe(context, 1, float(reward))
    return x, y


def test_the_linear_posterior_is_the_closed_form() -> None:
    rewards = LinearRewards(2, 3, noise=0.5, prior_scale=2.0)
    x, y = observed(rewards)
    rows = torch.cat([x, torch.ones(30, 1).double()], 1)
    covariance = torch.linalg.inv(rows.T @ rows / 0.25 + torch.eye(3).double() / 4)
    mean = covariance @ rows.T @ y / 0.25
    context = torch.tensor([0.3, -1.0]).double()
    at = torch.tensor([0.3, -1.0, 1.0]).double()
    found, std = rewards.moments(context)
    torch.testing.assert_close(found, torch.stack([at.sum() * 0, at @ mean, at.sum() * 0]))
    prior = 2 * at.norm()
    torch.testing.assert_close(std, torch.stack([prior, (at @ covariance @ at).sqrt(), prior]))


def test_draws_have_its_moments() -> None:
    """4,000 draws of each arm, z of 4."""
    rewards = LinearRewards(2, 3, noise=0.5)
    observed(rewards)
    context = torch.tensor([0.3, -1.0]).double()
    torch.manual_seed(0)
    draws = torch.stack([rewards.sample(context) for _ in range(4000)])
    mean, std = rewards.moments(context)
    assert bool(((draws.mean(0) - mean).abs() < 4 * std / math.sqrt(4000)).all())
    assert bool(((draws.std(0) / std - 1).abs() < 4 / math.sqrt(8000)).all())


def test_features_come_before_the_regression() -> None:
    squared = LinearRewards(1, 1, features=lambda context: context.square())
    plain = LinearRewards(1, 1)
    for value in (0.5, -2.0, 1.0):
        squared.observe(torch.tensor([value]), 0, value)
        plain.observe(torch.tensor([value**2]), 0, value)
    torch.testing.assert_close(squared.moments(torch.tensor([-3.0])), plain.moments(torch.tensor([9.0])))


def network(guide: type[pb.guides.Guide] = pb.guides.MeanField, **options: int) -> NeuralRewards:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 4))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1, missing=True), num_data=1)
    settings = {"refit_every": 20, "steps": 40, "first_steps": 200, "num_samples": 5} | options
    return NeuralRewards(model, guide(model), 4, options={"lr": 1e-2, "seed": 0}, **settings)


@pytest.mark.parametrize("guide", [pb.guides.MeanField, pb.guides.MCDropout, pb.guides.DeltaMixture])
def test_thompson_sampling_learns_with_networks(guide: type[pb.guides.Guide]) -> None:
    """Regret of the last 50 of 160 rounds is below half of that of the first 50 after the initial pulls."""
    run = play(ThompsonSampling(network(guide)), linear(160, 0), seed=0)
    assert float(run.regrets[-50:].mean()) < 0.5 * float(run.regrets[12:62].mean())


def test_only_the_reward_that_was_seen_is_learned_from() -> None:
    """The data of a refit hold NaN where nothing was seen, and N is their number."""
    rewards = network(refit_every=3)
    for arm, reward in ((0, 1.0), (2, -1.0), (2, 0.5)):
        rewards.observe(torch.ones(3), arm, reward)
    assert rewards.model.num_data == 3
    targets = torch.stack(rewards.targets)
    assert targets.isnan().sum() == 9 and targets[1, 2] == -1.0
    mean, std = rewards.moments(torch.ones(3))
    assert mean.shape == std.shape == rewards.sample(torch.ones(3)).shape == (4,)


def test_noise_that_is_learned_is_warned_of() -> None:
    model = pb.SupervisedModel(nn.Linear(3, 4), pb.likelihoods.Normal(missing=True), num_data=1)
    with pytest.warns(UserWarning, match="state it, as in Normal"):
        NeuralRewards(model, pb.guides.MeanField(model), 4)


def test_draws_of_a_point_are_its_mean() -> None:
    rewards = network(pb.guides.MAP)
    context = torch.ones(3)
    torch.testing.assert_close(rewards.sample(context), rewards.moments(context)[0])
    assert float(rewards.moments(context)[1].max()) < 1e-6


def test_bad_input_is_refused() -> None:
    for options, name in (
        ({"num_inputs": 0}, "num_inputs"),
        ({"num_arms": 0}, "num_arms"),
        ({"noise": 0.0}, "noise"),
        ({"prior_scale": -1.0}, "prior_scale"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            LinearRewards(**({"num_inputs": 1, "num_arms": 2} | options))  # type: ignore[arg-type]
    for name in ("refit_every", "steps", "first_steps", "batch_size", "num_samples"):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            NeuralRewards(network().model, network().guide, 4, **{name: 0})
    model = pb.SupervisedModel(nn.Linear(1, 2), pb.likelihoods.Normal(0.1), num_data=1)
    with pytest.raises(ValueError, match=r"^model: only the reward of the arm that was pulled"):
        NeuralRewards(model, pb.guides.MAP(model), 2)
    with pytest.raises(TypeError, match=r"^guide: "):
        NeuralRewards(network().model, nn.Linear(1, 1), 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^model: "):
        NeuralRewards(nn.Linear(1, 2), pb.guides.MAP(model), 2)  # type: ignore[arg-type]
