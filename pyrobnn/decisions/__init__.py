"""Decisions under uncertainty: contextual bandits on any posterior."""

from pyrobnn.decisions.bandits import (
    UCB,
    BanditRun,
    ContextualBandit,
    EpsilonGreedy,
    Policy,
    ThompsonSampling,
    UniformPolicy,
    play,
    wheel,
)
from pyrobnn.decisions.rewards import LinearRewards, NeuralRewards, RewardModel

__all__ = [
    "UCB",
    "BanditRun",
    "ContextualBandit",
    "EpsilonGreedy",
    "LinearRewards",
    "NeuralRewards",
    "Policy",
    "RewardModel",
    "ThompsonSampling",
    "UniformPolicy",
    "play",
    "wheel",
]
