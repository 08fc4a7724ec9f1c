"""The Gaussian process of an infinitely wide network on 5,000 points, as a multiple of one Cholesky of its kernel.

Baseline: a Cholesky factorization of the kernel's matrix plus noise. Contenders: the kernel; the posterior with stated
noise (kernel, evidence, factorization), and with noise of the largest evidence; a prediction of 1,000 points.

    python -m benchmarks.infinite_width --threads 2 --points 5000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

import pyrobnn as pb
from benchmarks.timing import CLOCKS, Alternating, Timing, environment, markdown_table, write_json
from pyrobnn.function_space import infinite_width, kernel


def model_of(points: int, noise: float | None) -> pb.SupervisedModel:
    """Two hidden layers of ReLU on 20 inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 1))
    likelihood = pb.likelihoods.Normal() if noise is None else pb.likelihoods.Normal(noise)
    return pb.SupervisedModel(net, likelihood, pb.priors.he(), num_data=points).double()


def measure(points: int, rounds: int, clock: str) -> list[Timing]:
    """The contenders beside the Cholesky."""
    known, learned = model_of(points, 0.1), model_of(points, None)
    x = torch.randn(points, 20, dtype=torch.float64)
    y = x[:, :1].sin() + 0.1 * torch.randn(points, 1, dtype=torch.float64)
    new = torch.randn(1000, 20, dtype=torch.float64)
    matrix = kernel(known, x)
    matrix.diagonal().add_(0.01)
    gp = infinite_width(known, x, y)

    def factorization() -> Tensor:
        return torch.linalg.cholesky(matrix)

    contenders: dict[str, Callable[[], Any]] = {
        "kernel": lambda: kernel(known, x),
        "posterior, stated noise": lambda: infinite_width(known, x, y),
        "posterior, learned noise": lambda: infinite_width(learned, x, y),
        "prediction of 1,000 points": lambda: gp.predict(new),
    }
    timings = []
    for name, contender in contenders.items():
        turns = Alternating(factorization, rounds, 0.0, clock)
        for _ in turns:
            contender()
        timings.append(turns.result(name))
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=int, default=5000, help="training points (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs (default %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall, or cpu with one thread")
    parser.add_argument("--json", metavar="PATH", help="write everything to a JSON file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    header = environment(options.threads, options.clock)
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    title = f"{options.points} points, two hidden layers"
    timings = measure(options.points, options.rounds, options.clock)
    print(f"\n{markdown_table(title, timings)}", flush=True)
    if options.json:
        write_json(options.json, header, {title: timings})


if __name__ == "__main__":
    main()
