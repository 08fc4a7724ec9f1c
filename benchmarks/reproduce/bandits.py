"""Contextual bandits: regret of Thompson sampling, UCB and greedy policies, relative to that of random arms.

* ``mushroom``: eat one of the mushrooms of the UCI set or not. An edible one pays 5, a poisonous one 5 or -35 with
  equal chance, passing pays 0.
* ``wheel``: two numbers, five arms, a rare large reward (:func:`pyrobnn.decisions.wheel`, delta 0.95); ``wide wheel``
  has delta 0.5.

Networks have two hidden layers of 50 and are refitted every 50 rounds, 100 steps from where they were (1,000 at first),
the learning rate 3e-3. Rewards are divided by the largest. The noise of networks is stated, 0.3 for mushrooms and 0.03
for wheels: chosen from 0.03, 0.1 and 0.3 for the mean field, by the regret of 600 rounds with seeds 100 and 101, which
are not reported. ``learned noise`` is what happens where it is not stated.

    python -m benchmarks.reproduce.bandits --json bandits.json
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Experiment, Row, arguments
from pyrobnn import guides
from pyrobnn.decisions import (
    UCB,
    ContextualBandit,
    EpsilonGreedy,
    LinearRewards,
    NeuralLinearRewards,
    NeuralRewards,
    ThompsonSampling,
    UniformPolicy,
    play,
    wheel,
)
from pyrobnn.decisions.bandits import Player


def mushroom(num_rounds: int, seed: int) -> ContextualBandit:
    """Mushrooms in random order; arm 0 passes, arm 1 eats."""
    path = datasets.root() / "mushroom" / "agaricus-lepiota.data"
    if not path.exists():
        raise datasets.MissingDataError(f"PYROBNN_DATA: there is no {path}.")
    table = np.loadtxt(path, delimiter=",", dtype=str)
    columns = [(column[:, None] == np.unique(column)).astype(np.float32) for column in table[:, 1:].T]
    contexts, poisonous = torch.from_numpy(np.concatenate(columns, 1)), torch.from_numpy(table[:, 0] == "p")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(contexts), (num_rounds,), generator=generator)
    unlucky = torch.rand(num_rounds, generator=generator) < 0.5
    is_bad = poisonous[chosen]
    eaten = torch.where(is_bad & unlucky, -35.0, 5.0)
    rewards = torch.stack([torch.zeros(num_rounds), eaten], 1)
    expected = torch.stack([torch.zeros(num_rounds), torch.where(is_bad, -15.0, 5.0)], 1)
    return ContextualBandit(contexts[chosen], rewards, expected)


NOISE = {"mushroom": 0.3, "wheel": 0.03, "wide wheel": 0.03}


def neural(
    guide: Callable[[Any], guides.Guide],
    bandit: ContextualBandit,
    quick: bool,
    noise: float | None,
) -> NeuralRewards:
    """A network with an output for each arm; noise of None is learned."""
    width, arms = bandit.contexts.shape[1], bandit.rewards.shape[1]
    net = nn.Sequential(nn.Linear(width, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, arms))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(noise, missing=True), num_data=1)
    steps = 2 if quick else 100
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "model: its likelihood is learned, too")
        return NeuralRewards(model, guide(model), arms, steps=steps, options={"lr": 3e-3})


def neural_linear(bandit: ContextualBandit, quick: bool, noise: float) -> NeuralLinearRewards:
    """Linear regressions on the features of the same network."""
    width, arms = bandit.contexts.shape[1], bandit.rewards.shape[1]
    body = nn.Sequential(nn.Linear(width, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU())
    return NeuralLinearRewards(body, 50, arms, noise=noise, steps=2 if quick else 100, options={"lr": 3e-3})


def policies(bandit: ContextualBandit, quick: bool, noise: float) -> dict[str, Callable[[], Player]]:
    """Makers of policies, by name."""
    width, arms = bandit.contexts.shape[1], bandit.rewards.shape[1]

    def rewards(guide: Callable[[Any], guides.Guide]) -> NeuralRewards:
        return neural(guide, bandit, quick, noise)

    return {
        "uniform": lambda: UniformPolicy(arms),
        "linear, Thompson": lambda: ThompsonSampling(LinearRewards(width, arms, noise=noise)),
        "MAP, greedy": lambda: EpsilonGreedy(rewards(guides.MAP)),
        "MAP, epsilon = 0.05": lambda: EpsilonGreedy(rewards(guides.MAP), 0.05),
        "mean field, Thompson": lambda: ThompsonSampling(rewards(guides.MeanField)),
        "mean field, learned noise": lambda: ThompsonSampling(neural(guides.MeanField, bandit, quick, None)),
        "MC dropout, Thompson": lambda: ThompsonSampling(rewards(guides.MCDropout)),
        "ensemble of 5, Thompson": lambda: ThompsonSampling(rewards(guides.DeltaMixture)),
        "ensemble of 5, UCB": lambda: UCB(rewards(guides.DeltaMixture)),
        "neural-linear, Thompson": lambda: ThompsonSampling(neural_linear(bandit, quick, noise)),
    }


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All policies on the same rounds."""
    rows: dict[str, Row] = {}
    rounds = 120 if options.quick else options.rounds
    for problem in options.problems:
        delta = 0.5 if problem == "wide wheel" else 0.95
        bandit = mushroom(rounds, seed) if problem == "mushroom" else wheel(rounds, delta, seed=seed)
        largest = float(bandit.rewards.abs().max())
        scaled = ContextualBandit(bandit.contexts, bandit.rewards / largest, bandit.expected / largest)
        made = policies(scaled, options.quick, NOISE[problem])
        by_chance = None
        for name in options.policies or list(made):
            torch.manual_seed(seed)
            found = play(made[name](), scaled, seed=seed)
            regret = float(found.cumulative_regret[-1]) * largest
            by_chance = regret if by_chance is None else by_chance
            last = found.simple_regret(rounds // 4) * largest
            rows[f"{problem}: {name}"] = {
                "regret": regret, "relative to uniform": regret / by_chance, "a round, last quarter": last,
            }  # fmt: skip
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--problems", nargs="+", choices=NOISE, default=["mushroom", "wheel"])
    parser.add_argument("--policies", nargs="+", help="default: all; the first is what regrets are relative to")
    parser.add_argument("--rounds", type=int, default=1500, help="default %(default)s")
    Experiment("Contextual bandits", run, lambda name: name.split(":")[0]).main(parser)


if __name__ == "__main__":
    main()
