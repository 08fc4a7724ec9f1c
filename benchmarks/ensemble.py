"""A step of an ensemble of M members, as a multiple of M steps of one network.

Baseline: M steps of ``MAP`` in a row, which is what M separate trainings cost; the data they would load M times are not
counted. Contenders: one step of ``DeltaMixture`` by the automatic choice, by the loop and by vmap.

    python -m benchmarks.ensemble --networks small lenet --members 8 --threads 1 --rounds 15
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.networks import WORKLOADS, Workload
from benchmarks.timing import CLOCKS, Alternating, Timing, environment, markdown_table, write_json
from benchmarks.training_step import bayesian, single_step
from pyrobnn.guides import MAP, DeltaMixture, Guide
from pyrobnn.model.supervised import SupervisedModel


def dense(*sizes: int, batch: int = 64) -> Callable[[], Workload]:
    """A network of linear layers with random data."""

    def make() -> Workload:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        name = "-".join(map(str, sizes))
        x, y = torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))
        return Workload(name, f"MLP {name}, batch {batch}", nn.Sequential(*layers[:-1]), x, y, 60_000)

    return make


NETWORKS: dict[str, Callable[[], Workload]] = {
    "small": dense(64, 64, 10),
    "medium": dense(256, 256, 10),
    **WORKLOADS,
}


def step_of(workload: Workload, make_guide: Callable[[SupervisedModel], Guide]) -> Callable[[], Any]:
    """One step of the workload in this library."""
    return single_step(*bayesian(workload, make_guide), workload.x, workload.y)


def measure(workload: Workload, members: int, rounds: int, block_seconds: float, clock: str) -> list[Timing]:
    """The contenders on one network."""
    contenders: dict[str, bool | str] = {"auto": "auto", "loop": False}
    if not any(True for _ in workload.net.buffers()):
        contenders["vmap"] = True
    single = step_of(workload, MAP)

    def separately() -> None:
        for _ in range(members):
            single()

    timings = []
    for name, vmap in contenders.items():
        vectorized = step_of(workload, lambda model, vmap=vmap: DeltaMixture(model, members, vmap=vmap))  # type: ignore[misc]
        turns = Alternating(separately, rounds, block_seconds, clock)
        for _ in turns:
            vectorized()
        timings.append(turns.result(f"DeltaMixture, M = {members}, {name}"))
    return timings


def run(
    description: str | None,
    title: str,
    networks: Mapping[str, Callable[[], Workload]],
    members: int,
    measure: Callable[[Workload, int, int, float, str], list[Timing]],
) -> None:
    """The command of a benchmark of ensembles: measures each network that the options name, and prints its table.

    Args:
        description: Its docstring.
        title: Of the tables.
        networks: By name.
        members: Default number of members.
        measure: From network, members, rounds, length of a block and clock to timings.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=networks, default=list(networks), help="default: all")
    parser.add_argument("--members", type=int, default=members, help="members of the ensemble (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of blocks (default %(default)s)")
    parser.add_argument("--block-seconds", type=float, default=0.25, help="length of a block (default %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall, or cpu for a busy machine")
    parser.add_argument("--json", metavar="PATH", help="write everything to a JSON file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pyro.enable_validation(False)  # as in fit from its second epoch on
    header = environment(options.threads, options.clock)
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    tables = {}
    for name in options.networks:
        workload = networks[name]()
        timings = measure(workload, options.members, options.rounds, options.block_seconds, options.clock)
        tables[workload.title] = timings
        print(f"\n{markdown_table(f'{title}, {workload.title}', timings)}", flush=True)
    if options.json:
        write_json(options.json, header, tables)


def main() -> None:
    run(__doc__, "Ensemble step", NETWORKS, 8, measure)


if __name__ == "__main__":
    main()
