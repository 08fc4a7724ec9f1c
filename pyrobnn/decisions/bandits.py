r"""Contextual bandits: in each round a context comes, one of A arms is pulled, and its reward alone is seen.

A reward model (:mod:`pyrobnn.decisions.rewards`) holds a posterior over functions from contexts to the rewards of all
arms. Policies differ in what they do with it:

* **Thompson sampling** draws *one function* for each decision and pulls its best arm, so that arms whose rewards depend
  on each other stay dependent.
* **UCB** pulls the arm of the largest mean plus c epistemic standard deviations.
* **ε-greedy** pulls the arm of the largest mean, a random one with probability ε; greedy is ε = 0.

The regret of a round is the expected reward of the best arm minus that of the arm pulled.

Riquelme, Tucker and Snoek, "Deep Bayesian bandits showdown", ICLR 2018, whose protocol this is: each arm is pulled some
times first, and posteriors are refitted at intervals, from where they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_non_negative, check_number, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.decisions.rewards import RewardModel

__all__ = [
    "UCB",
    "BanditRun",
    "ContextualBandit",
    "EpsilonGreedy",
    "Player",
    "Policy",
    "ThompsonSampling",
    "UniformPolicy",
    "play",
    "wheel",
]


class Player(Protocol):
    """Chooses arms, and learns of rewards."""

    def act(self, context: Tensor) -> int:
        """The arm to pull at a context ``[d]``."""
        ...

    def observe(self, context: Tensor, arm: int, reward: float) -> None:
        """Tells the reward of the arm that was pulled."""
        ...


class Policy(ABC):
    """Chooses arms, and learns of rewards.

    Args:
        rewards: The reward model, or anything with ``num_arms`` and ``observe``.
        initial_pulls: Each arm is pulled so often first, in turn.
    """

    def __init__(self, rewards: RewardModel, initial_pulls: int = 3) -> None:
        check_int("initial_pulls", initial_pulls, 0)
        self.rewards, self.initial_pulls, self._round = rewards, initial_pulls, 0

    def act(self, context: Tensor) -> int:
        """The arm to pull at a context ``[d]``."""
        if self._round < self.initial_pulls * self.rewards.num_arms:
            return self._round % self.rewards.num_arms
        return self.choose(context)

    def observe(self, context: Tensor, arm: int, reward: float) -> None:
        """Tells the reward of the arm that was pulled."""
        self._round += 1
        self.rewards.observe(context, arm, reward)

    @abstractmethod
    def choose(self, context: Tensor) -> int:
        """The arm after the initial pulls."""


class ThompsonSampling(Policy):
    """The best arm of one function drawn from the posterior."""

    def choose(self, context: Tensor) -> int:
        """Draws a function and takes its best arm."""
        return int(self.rewards.sample(context).argmax())


@explained
class UCB(Policy):
    """The arm of the largest mean plus ``width`` epistemic standard deviations.

    Args:
        rewards: The reward model.
        width: How many standard deviations.
        initial_pulls: Each arm is pulled so often first.

    Raises:
        ValueError: If ``width`` is negative.
    """

    def __init__(self, rewards: RewardModel, width: float = 2.0, initial_pulls: int = 3) -> None:
        super().__init__(rewards, initial_pulls)
        check_non_negative("width", width)
        self.width = width

    def choose(self, context: Tensor) -> int:
        """The largest upper bound."""
        mean, std = self.rewards.moments(context)
        return int((mean + self.width * std).argmax())


@explained
class EpsilonGreedy(Policy):
    """The arm of the largest mean; with probability ``epsilon`` any.

    Args:
        rewards: The reward model.
        epsilon: The probability of a random arm; 0 is greedy.
        initial_pulls: Each arm is pulled so often first.

    Raises:
        ValueError: If ``epsilon`` is not from 0 to 1.
    """

    def __init__(self, rewards: RewardModel, epsilon: float = 0.0, initial_pulls: int = 3) -> None:
        super().__init__(rewards, initial_pulls)
        check_number("epsilon", epsilon, 0.0, 1.0)
        self.epsilon = epsilon

    def choose(self, context: Tensor) -> int:
        """The best arm by the mean, or a random one."""
        if self.epsilon and float(torch.rand(())) < self.epsilon:
            return int(torch.randint(self.rewards.num_arms, ()))
        return int(self.rewards.moments(context)[0].argmax())


@explained
class UniformPolicy:
    """A random arm, always: what regrets are relative to.

    Args:
        num_arms: Number A of arms.
    """

    def __init__(self, num_arms: int) -> None:
        check_positive_int("num_arms", num_arms)
        self.num_arms = num_arms

    def act(self, context: Tensor) -> int:
        """Any arm."""
        return int(torch.randint(self.num_arms, ()))

    def observe(self, context: Tensor, arm: int, reward: float) -> None:
        """Nothing to learn."""


@dataclass(frozen=True)
class ContextualBandit:
    """T rounds, with the rewards of all arms drawn in advance, so that policies meet the same luck.

    Attributes:
        contexts: ``[T, d]``.
        rewards: What each arm would pay ``[T, A]``.
        expected: The expectation of that, given the context ``[T, A]``.

    Raises:
        ValueError: If shapes do not fit, or there are no rounds.
    """

    contexts: Tensor
    rewards: Tensor
    expected: Tensor

    def __post_init__(self) -> None:
        rounds = len(self.contexts)
        if self.contexts.dim() != 2 or not rounds:
            raise ValueError(f"contexts: expected shape [T, d], got {tuple(self.contexts.shape)}.")
        if self.rewards.dim() != 2 or len(self.rewards) != rounds:
            raise ValueError(f"rewards: expected shape [{rounds}, A], got {tuple(self.rewards.shape)}.")
        if self.expected.shape != self.rewards.shape:
            raise ValueError(
                f"expected: it must have the shape of rewards, {tuple(self.rewards.shape)}, got "
                f"{tuple(self.expected.shape)}."
            )


@dataclass(frozen=True)
class BanditRun:
    """What a policy did.

    Attributes:
        arms: Arms pulled ``[T]``.
        rewards: Rewards seen ``[T]``.
        regrets: Regret of each round ``[T]``.
    """

    arms: Tensor
    rewards: Tensor
    regrets: Tensor

    @property
    def cumulative_regret(self) -> Tensor:
        """Regret of all rounds so far ``[T]``."""
        return self.regrets.cumsum(0)

    def simple_regret(self, last: int = 500) -> float:
        """Mean regret of the ``last`` rounds: that of the policy it has come to.

        Raises:
            ValueError: If ``last`` is no positive int.
        """
        check_positive_int("last", last)
        return float(self.regrets[-last:].mean())


@explained
def play(policy: Player, bandit: ContextualBandit, seed: int | None = None) -> BanditRun:
    """Plays all rounds.

    Args:
        policy: The policy; it learns as it plays.
        bandit: The rounds.
        seed: Fixes what the policy draws, and leaves torch's random state alone; None uses that.

    Raises:
        ValueError: If the policy pulls an arm that there is not.
    """
    arms = []
    count = bandit.rewards.shape[1]
    with random_state.local(seed):
        for context, rewards in zip(bandit.contexts, bandit.rewards, strict=True):
            arm = policy.act(context)
            if not 0 <= arm < count:
                raise ValueError(f"policy: it pulled arm {arm}, and there are {count}, from 0 on.")
            policy.observe(context, arm, float(rewards[arm]))
            arms.append(arm)
    pulled = torch.tensor(arms, device=bandit.rewards.device)
    rows = torch.arange(len(arms), device=pulled.device)
    regrets = bandit.expected.max(1).values - bandit.expected[rows, pulled]
    return BanditRun(pulled, bandit.rewards[rows, pulled], regrets)


@explained
def wheel(num_rounds: int, delta: float = 0.95, *, noise: float = 0.01, seed: int = 0) -> ContextualBandit:
    r"""The wheel bandit, which rewards exploration: contexts are uniform on the unit disk, and there are five arms.

    Arm 0 pays 1.2 everywhere. Within radius ``delta`` the others pay 1. Outside one of them, by the quadrant, pays 50.
    With ``delta`` near 1 the large reward is rare.

    Args:
        num_rounds: Number T of rounds.
        delta: The radius δ.
        noise: Standard deviation of rewards.
        seed: Fixes the rounds.

    Raises:
        ValueError: If a number is out of its range.
    """
    check_positive_int("num_rounds", num_rounds)
    check_number("delta", delta, 0.0, 1.0, above=True, below=True)
    check_non_negative("noise", noise)
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(num_rounds, generator=generator)
    radius = torch.rand(num_rounds, generator=generator).sqrt()
    contexts = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    expected = torch.ones(num_rounds, 5)
    expected[:, 0] = 1.2
    quadrant = 1 + (contexts[:, 0] < 0).long() + 2 * (contexts[:, 1] < 0).long()
    outside = (radius > delta).nonzero().squeeze(1)
    expected[outside, quadrant[outside]] = 50.0
    return ContextualBandit(contexts, expected + noise * torch.randn(num_rounds, 5, generator=generator), expected)
