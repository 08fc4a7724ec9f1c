"""A step of the functional ELBO, as a multiple of the ensemble's own step on as many rows.

Baseline: a step of ``DeltaMixture`` with the ELBO on 128 rows. Contenders: the functional ELBO of the same members at
128 measurement points and 10 outputs, with a kernel for prior and with random networks; all 128 of them the batch, and
half of them context points, whose rows have no targets.

    python -m benchmarks.functional --networks medium lenet --members 10 --threads 1 --rounds 15
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.ensemble import dense, run
from benchmarks.networks import WORKLOADS, Workload
from benchmarks.timing import Alternating, Timing
from benchmarks.training_step import bayesian
from pyrobnn.function_space import FunctionalELBO, RandomNetworks
from pyrobnn.guides import DeltaMixture
from pyrobnn.objectives import ELBO, Objective

POINTS = 128


def rows(make: Callable[[], Workload]) -> Callable[[], Workload]:
    """The workload with a batch of 128 rows."""

    def made() -> Workload:
        workload = make()
        x = torch.randn(POINTS, *workload.x.shape[1:])
        title = workload.title.replace("batch 64", f"batch {POINTS}")
        return replace(workload, title=title, x=x, y=torch.randint(10, (POINTS,)))

    return made


NETWORKS = {
    "medium": rows(dense(256, 256, 10)),
    "deep": rows(dense(784, 400, 400, 10)),
    "lenet": rows(WORKLOADS["lenet"]),
}


def smooth(x1: Tensor, x2: Tensor) -> Tensor:
    """A squared-exponential kernel whose length grows with the inputs' size."""
    return (-0.5 * torch.cdist(x1.flatten(1), x2.flatten(1)).square() / x1[0].numel()).exp()


def step_of(workload: Workload, members: int, objective: Objective, count: int) -> Callable[[], Any]:
    """One step on the first ``count`` rows as ``fit`` takes it."""
    model, guide = bayesian(workload, lambda model: DeltaMixture(model, members, init="he"))
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-3)
    batch = workload.x[:count], workload.y[:count]

    def step() -> None:
        optimizer.zero_grad()
        objective.backward(model, guide, batch, scale=None)
        optimizer.step()

    return step


def measure(workload: Workload, members: int, rounds: int, block_seconds: float, clock: str) -> list[Timing]:
    """The contenders on one network."""
    half = POINTS // 2
    contenders: dict[str, tuple[Objective, int]] = {
        "kernel, 128 rows": (FunctionalELBO(smooth), POINTS),
        "kernel, 64 rows + 64 points": (FunctionalELBO(smooth, lambda _: workload.x[half:]), half),
        "10 random networks, 128 rows": (FunctionalELBO(RandomNetworks(10)), POINTS),
        "3 random networks, 128 rows": (FunctionalELBO(RandomNetworks(3)), POINTS),
    }
    baseline = step_of(workload, members, ELBO(), POINTS)
    timings = []
    for name, (objective, count) in contenders.items():
        step = step_of(workload, members, objective, count)
        turns = Alternating(baseline, rounds, block_seconds, clock)
        for _ in turns:
            step()
        timings.append(turns.result(f"M = {members}, {name}"))
    return timings


def main() -> None:
    run(__doc__, "Functional step", NETWORKS, 10, measure)


if __name__ == "__main__":
    main()
