"""Decisions under uncertainty: active learning, bandits, Q-learning and Bayesian optimization, on any posterior."""

from pyrobnn.decisions.acquisition import (
    BALD,
    EPIG,
    Acquisition,
    BatchBALD,
    Entropy,
    MeanStd,
    Pool,
    Random,
    VariationRatio,
)
from pyrobnn.decisions.active_learning import ActiveLearning, ActiveLearningRound
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
from pyrobnn.decisions.bayesian_optimization import BayesianOptimization, expected_improvement
from pyrobnn.decisions.feature_acquisition import BADGE, CoreSet
from pyrobnn.decisions.maze import Maze
from pyrobnn.decisions.neural_linear import NeuralLinearRewards
from pyrobnn.decisions.q_learning import LinearQ, NeuralQ, QFunctions, QLearning, QRun
from pyrobnn.decisions.rewards import LinearRewards, NeuralRewards, RewardModel

__all__ = [
    "BADGE",
    "BALD",
    "EPIG",
    "UCB",
    "Acquisition",
    "ActiveLearning",
    "ActiveLearningRound",
    "BanditRun",
    "BatchBALD",
    "BayesianOptimization",
    "ContextualBandit",
    "CoreSet",
    "Entropy",
    "EpsilonGreedy",
    "LinearQ",
    "LinearRewards",
    "Maze",
    "MeanStd",
    "NeuralLinearRewards",
    "NeuralQ",
    "NeuralRewards",
    "Policy",
    "Pool",
    "QFunctions",
    "QLearning",
    "QRun",
    "Random",
    "RewardModel",
    "ThompsonSampling",
    "UniformPolicy",
    "VariationRatio",
    "expected_improvement",
    "play",
    "wheel",
]
