"""PGD against a posterior, as a multiple of as many forward and backward passes of the plain network.

Baseline (the floor): passes of the plain network with the gradient with respect to the inputs, one for each step and
draw. PGD evaluates the clean and the last inputs besides, two forward passes.

    python -m benchmarks.attacks --rows 256 --steps 20 --rounds 9 --json attacks.json
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

import pyrobnn as pb
from pyrobnn.guides import MAP, MeanField
from pyrobnn.robustness import PGD


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Two networks of digits."""
    return {
        "784-400-400-10": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)
        ),
        "LeNet": lambda: nn.Sequential(
            *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10)),
        ),
    }


def passes(net: nn.Module, x: Tensor, y: Tensor, count: int) -> None:
    """The floor."""
    for _ in range(count):
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(nn.functional.cross_entropy(net(leaf), y), leaf)


def ratio(ours: Callable[[], object], floor: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The median of the ratios of alternating rounds, and half the distance of their quartiles."""
    ours(), floor()
    found = []
    for _ in range(rounds):
        seconds = []
        for run in (ours, floor):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
        found.append(seconds[0] / seconds[1])
    low, middle, high = statistics.quantiles(found, n=4)
    return middle, (high - low) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256, help="images (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of PGD (default %(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="of the mean-field posterior (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(default %(default)s)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    torch.manual_seed(0)
    x, y = torch.rand(options.rows, 1, 28, 28), torch.randint(0, 10, (options.rows,))
    rows = {}
    for name, make in networks().items():
        net = make().requires_grad_(False)
        model = pb.SupervisedModel(make(), pb.likelihoods.Categorical(), dist.Normal(0.0, 0.1), num_data=1000)
        attack = PGD(0.1, clip=(0.0, 1.0), steps=options.steps)
        for guide, draws in ((MAP(model), 1), (MeanField(model), options.draws)):
            ours = functools.partial(attack, model, guide, x, y, num_samples=draws, seed=0)
            found = ratio(ours, functools.partial(passes, net, x, y, options.steps * draws), options.rounds)
            rows[f"{name}, {type(guide).__name__}, {draws} draws"] = found
            print(f"{name:16} {type(guide).__name__:10} {draws:3} draws  {found[0]:.3f} ± {found[1]:.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
