"""One training step under other likelihoods, as a multiple of the step under ``Categorical``, of the same network.

Both are steps of :func:`pyrobnn.fit` for a mean-field posterior and alternate in one process. The network's ten outputs
are logits of ten classes, means and scales of five targets, or a mixture of two components for two targets.

The smallest network, of the size that is usual for tables of data, shows the fixed cost of a likelihood.

    python -m benchmarks.likelihood_step --networks small mlp lenet --threads 1 --rounds 21
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.networks import WORKLOADS, Workload
from benchmarks.timing import Alternating, Timing, environment, markdown_table, write_json
from benchmarks.training_step import arguments
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.guides import MeanField
from pyrobnn.model import likelihoods
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO, DirichletELBO
from pyrobnn.training import make_optimizer, train_step

CONTENDERS: dict[str, tuple[Callable[[], likelihoods.Likelihood], Callable[[Workload], Tensor], Callable[[], ELBO]]] = {
    "Categorical": (likelihoods.Categorical, lambda workload: workload.y, ELBO),
    "Normal(0.1)": (lambda: likelihoods.Normal(0.1), lambda workload: _real(workload, 10), ELBO),
    "HeteroscedasticNormal": (likelihoods.HeteroscedasticNormal, lambda workload: _real(workload, 5), ELBO),
    "MixtureDensity(2)": (lambda: likelihoods.MixtureDensity(2), lambda workload: _real(workload, 2), ELBO),
    "Dirichlet": (likelihoods.Dirichlet, lambda workload: workload.y, ELBO),
    "Dirichlet, DirichletELBO": (likelihoods.Dirichlet, lambda workload: workload.y, DirichletELBO),
}


def small() -> Workload:
    """8-50-10, batch 128: 960 weights in 4 tensors."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.Linear(50, 10))
    return Workload("small", "MLP 8-50-10, batch 128", net, torch.randn(128, 8), torch.randint(10, (128,)), 1_000)


NETWORKS = {"small": small} | {name: make for name, make in WORKLOADS.items() if name != "tiny"}  # of ten outputs


def _real(workload: Workload, targets: int) -> Tensor:
    return torch.randn(len(workload.y), targets)


def step_of(workload: Workload, name: str) -> Callable[[], Any]:
    """One step as fit takes it after its first epoch, when targets are no longer checked."""
    make, targets, objective = CONTENDERS[name]
    model = SupervisedModel(copy.deepcopy(workload.net), make(), dist.Normal(0.0, 1.0), num_data=workload.num_data)
    guide, elbo, batch = MeanField(model), objective(), (workload.x, targets(workload))
    optimizer = make_optimizer(model, guide)
    return lambda: train_step(model, guide, elbo, optimizer, batch)


def measure(workload: Workload, rounds: int, block_seconds: float, clock: str, only: str) -> list[Timing]:
    """All likelihoods on one network."""
    timings = []
    for name in CONTENDERS:
        if only.lower() not in name.lower():
            continue
        torch.manual_seed(0)
        turns = Alternating(step_of(workload, "Categorical"), rounds, block_seconds, clock)
        step = step_of(workload, name)
        for _ in turns:
            step()
        timings.append(turns.result(name))
    return timings


def main() -> None:
    parser = arguments(__doc__, rounds=21, networks=NETWORKS)
    parser.add_argument("--block-seconds", type=float, default=0.25, help="length of a block (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    header = environment(options.threads, options.clock) | {"baseline": "MeanField, Categorical"}
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    tables = {}
    with validation_enabled(False):  # as in fit from the second epoch on
        for name in options.networks:
            workload = NETWORKS[name]()
            timings = measure(workload, options.rounds, options.block_seconds, options.clock, options.only)
            tables[workload.title] = timings
            print(f"\n{markdown_table(f'Likelihoods, {workload.title}', timings)}", flush=True)
    if options.json:
        write_json(options.json, header, tables)


if __name__ == "__main__":
    main()
