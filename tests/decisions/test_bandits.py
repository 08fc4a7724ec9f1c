"""Policies of contextual bandits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyrobnn.decisions import (
    UCB,
    ContextualBandit,
    EpsilonGreedy,
    LinearRewards,
    Policy,
    ThompsonSampling,
    UniformPolicy,
    play,
    wheel,
)

NOTHING = torch.zeros(1)


def two_arms() -> LinearRewards:
    """After three rewards each of 1 and 0, with noise and prior of 1: N(3 / 4, 1 / 4) and N(0, 1 / 4)."""
    rewards = LinearRewards(1, 2)
    for arm, reward in ((0, 1.0), (1, 0.0)):
        for _ in range(3):
            rewards.observe(NOTHING, arm, reward)
    return rewards


def test_thompson_sampling_errs_as_often_as_its_posterior_says() -> None:
    r"""The second arm's draw is the larger one with probability Φ(-0.75 / sqrt(0.5)); 4,000 draws, z of 4."""
    torch.manual_seed(0)
    policy = ThompsonSampling(two_arms(), initial_pulls=0)
    share = sum(policy.act(NOTHING) for _ in range(4000)) / 4000
    expected = float(torch.special.ndtr(torch.tensor(-0.75 / math.sqrt(0.5))))
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_the_regret_of_the_exact_posterior_is_that_of_the_closed_form() -> None:
    """A round's expected regret is the gap times that probability, summed over the rounds of 400 plays (z of 4).

    Arms pay exactly 1 and 0 while the model believes in noise of 1, so that after n and m pulls posteriors are
    N(n / (n + 1), 1 / (n + 1)) and N(0, 1 / (m + 1)): the closed form of each round is known given the pulls so far.
    """
    rounds, plays, found, expected, variance = 20, 400, 0.0, 0.0, 0.0
    means = torch.tensor([1.0, 0.0]).expand(rounds, 2)
    bandit = ContextualBandit(torch.zeros(rounds, 1), means, means)
    for index in range(plays):
        run = play(ThompsonSampling(LinearRewards(1, 2), initial_pulls=1), bandit, seed=index)
        found += float(run.cumulative_regret[-1]) - 1  # of the initial pulls
        n = torch.cumsum(run.arms == 0, 0)[1:-1].double()
        m = torch.cumsum(run.arms == 1, 0)[1:-1].double()
        error = torch.special.ndtr(-(n / (n + 1)) / (1 / (n + 1) + 1 / (m + 1)).sqrt())
        expected += float(error.sum())
        variance += float((error * (1 - error)).sum())
    assert abs(found - expected) < 4 * math.sqrt(variance)


class Correlated:
    """One number drawn for both arms: the first is always the better one by 0.1."""

    num_arms = 2

    def sample(self, context: Tensor) -> Tensor:
        return torch.randn(()) + torch.tensor([0.1, 0.0])

    def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.1, 0.0]), torch.ones(2)

    def observe(self, context: Tensor, arm: int, reward: float) -> None:
        self.last = arm, reward


def test_a_decision_is_under_one_function() -> None:
    """Arms that share their noise are never confused; separate draws of each would be, nearly half the time."""
    policy = ThompsonSampling(Correlated(), initial_pulls=0)
    assert {policy.act(NOTHING) for _ in range(100)} == {0}


def test_ucb_and_greedy_by_hand() -> None:
    class Wide(Correlated):
        def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tensor([1.0, 0.0]), torch.tensor([0.1, 1.0])

    assert UCB(Wide(), 1.2, initial_pulls=0).act(NOTHING) == 1  # 1.12 against 1.2
    assert UCB(Wide(), 1.1, initial_pulls=0).act(NOTHING) == 0  # 1.11 against 1.1
    assert EpsilonGreedy(Wide(), initial_pulls=0).act(NOTHING) == 0
    torch.manual_seed(0)
    often = EpsilonGreedy(Wide(), 0.4, initial_pulls=0)
    share = sum(often.act(NOTHING) for _ in range(2000)) / 2000
    assert abs(share - 0.2) < 4 * math.sqrt(0.16 / 2000)


@pytest.mark.parametrize("kind", [ThompsonSampling, UCB, EpsilonGreedy])
def test_each_arm_is_pulled_first(kind: type[Policy]) -> None:
    policy = kind(LinearRewards(1, 3), initial_pulls=2)
    arms = []
    for _ in range(6):
        arms.append(policy.act(NOTHING))
        policy.observe(NOTHING, arms[-1], 0.0)
    assert arms == [0, 1, 2, 0, 1, 2]


def linear(rounds: int, seed: int) -> ContextualBandit:
    """Rewards linear in three numbers, noise of 0.1."""
    generator = torch.Generator().manual_seed(seed)
    x, weights = torch.randn(rounds, 3, generator=generator), torch.randn(3, 4, generator=generator)
    return ContextualBandit(x, x @ weights + 0.1 * torch.randn(rounds, 4, generator=generator), x @ weights)


def test_policies_learn_and_uniform_does_not() -> None:
    """Regret of the last 100 of 400 rounds: below a twentieth of uniform's, for each policy on three problems."""
    for seed in range(3):
        bandit = linear(400, seed)
        by_chance = play(UniformPolicy(4), bandit, seed=0).simple_regret(100)
        for policy in (
            ThompsonSampling(LinearRewards(3, 4, noise=0.1)),
            UCB(LinearRewards(3, 4, noise=0.1)),
            EpsilonGreedy(LinearRewards(3, 4, noise=0.1)),
        ):
            assert play(policy, bandit, seed=0).simple_regret(100) < by_chance / 20


def test_runs_are_reproducible_and_add_up() -> None:
    bandit = linear(50, 0)
    before = torch.get_rng_state()
    first, second = (play(ThompsonSampling(LinearRewards(3, 4)), bandit, seed=1) for _ in range(2))
    assert torch.equal(first.arms, second.arms) and torch.equal(torch.get_rng_state(), before)
    rows = torch.arange(50)
    assert torch.equal(first.rewards, bandit.rewards[rows, first.arms])
    torch.testing.assert_close(first.regrets, bandit.expected.max(1).values - bandit.expected[rows, first.arms])
    assert float(first.cumulative_regret[-1]) == pytest.approx(float(first.regrets.sum()), rel=1e-5)
    assert first.simple_regret(10) == pytest.approx(float(first.regrets[-10:].mean()))


def test_the_wheel() -> None:
    """Shares of the disk within four standard errors; 50 is paid by one arm outside, a different one by quadrant."""
    bandit = wheel(5000, 0.9)
    radius = bandit.contexts.norm(dim=1)
    outside = radius > 0.9
    assert abs(float(outside.double().mean()) - 0.19) < 4 * math.sqrt(0.19 * 0.81 / 5000)
    assert bool((bandit.expected[~outside] == torch.tensor([1.2, 1, 1, 1, 1])).all())
    best = bandit.expected[outside].argmax(1)
    assert bool((bandit.expected[outside].max(1).values == 50).all()) and sorted(best.unique().tolist()) == [1, 2, 3, 4]
    corner = bandit.contexts[outside]
    assert bool((best == 1 + (corner[:, 0] < 0).long() + 2 * (corner[:, 1] < 0).long()).all())
    assert float((bandit.rewards - bandit.expected).std()) == pytest.approx(0.01, rel=0.05)


def test_bad_input_is_refused() -> None:
    rewards = LinearRewards(1, 2)
    with pytest.raises(ValueError, match=r"^width: "):
        UCB(rewards, -1.0)
    with pytest.raises(ValueError, match=r"^epsilon: "):
        EpsilonGreedy(rewards, 1.5)
    with pytest.raises(ValueError, match=r"^initial_pulls: "):
        ThompsonSampling(rewards, -1)
    with pytest.raises(ValueError, match=r"^num_arms: "):
        UniformPolicy(0)
    with pytest.raises(ValueError, match=r"^delta: "):
        wheel(10, 1.0)
    for wrong, name in (
        ((torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2)), "contexts"),
        ((torch.zeros(3, 1), torch.zeros(2, 2), torch.zeros(2, 2)), "rewards"),
        ((torch.zeros(3, 1), torch.zeros(3, 2), torch.zeros(3, 3)), "expected"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            ContextualBandit(*wrong)
    two = ContextualBandit(torch.zeros(3, 1), torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"^policy: it pulled arm 2"):
        play(ThompsonSampling(LinearRewards(1, 3)), two)
    with pytest.raises(ValueError, match=r"^last: "):
        play(UniformPolicy(2), two).simple_regret(0)
