"""Q-learning in the maze: steps until the mean reward of ten episodes is near the best, by way of exploring.

The maze is :data:`pyrobnn.decisions.MAZE`, 8 x 8 with 41 free cells, 14 steps from start to goal: 1 at the goal, -0.01
a step, episodes of at most 100 steps. A random walk finds the goal in 3 % of such episodes. ``table`` is the exact
Bayesian linear regression of one-hot states; networks are 64-64-4, refitted every 50 steps with 100 steps of Adam at
3e-3. Thompson sampling draws one function a step, or one an episode where it says so. What was not reached counts as
all steps of the run. Settings were tried with seeds 100 and 101, which are not reported.

    python -m benchmarks.reproduce.maze --json maze.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import pyrobnn as pb
from benchmarks.reproduce.experiment import Experiment, Row, arguments
from pyrobnn import guides
from pyrobnn.decisions import LinearQ, Maze, NeuralQ, QLearning


def neural(guide: Callable[[Any], guides.Guide], quick: bool) -> NeuralQ:
    """A network with an output for each action."""
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1, missing=True), num_data=1)
    return NeuralQ(model, guide(model), 4, steps=2 if quick else 100, options={"lr": 3e-3})


def dropout(model: Any) -> guides.MCDropout:
    """A quarter of the hidden units: dropping the one input that is on would hide the state."""
    return guides.MCDropout(model, p=[("*2*", 0.25)], per_example=True)


def agents(quick: bool) -> dict[str, Callable[[], QLearning]]:
    """Makers of agents, by name."""
    often: dict[str, Any] = {"refit_every": 50}
    return {
        "table, epsilon = 0.1": lambda: QLearning(LinearQ(64, 4, noise=0.03), Maze(), epsilon=0.1, **often),
        "table, Thompson": lambda: QLearning(LinearQ(64, 4, noise=0.03), Maze(), draw_every=1, **often),
        "table, Thompson by episode": lambda: QLearning(LinearQ(64, 4, noise=0.03), Maze(), **often),
        "MAP, epsilon = 0.1": lambda: QLearning(neural(guides.MAP, quick), Maze(), epsilon=0.1, **often),
        "MC dropout, Thompson": lambda: QLearning(neural(dropout, quick), Maze(), draw_every=1, **often),
        "ensemble of 5, Thompson": lambda: QLearning(neural(guides.DeltaMixture, quick), Maze(), draw_every=1, **often),
    }


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All agents."""
    rows: dict[str, Row] = {}
    steps = 200 if options.quick else options.steps
    made = agents(options.quick)
    for name in options.agents or list(made):
        torch.manual_seed(seed)
        history = made[name]().run(steps, seed=seed)
        found = history.steps_to(-0.99, 1)
        good = history.steps_to(0.8)
        rows[name] = {
            "steps to the goal": float(steps if found is None else found),
            "steps to 0.8": float(steps if good is None else good),
            "reached 0.8": float(good is not None),
            "last ten episodes": sum(history.rewards[-10:]) / len(history.rewards[-10:]),
        }
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--agents", nargs="+", help="default: all")
    parser.add_argument("--steps", type=int, default=5000, help="default %(default)s")
    Experiment("Q-learning in a maze", run).main(parser)


if __name__ == "__main__":
    main()
