"""One training step, as a multiple of the deterministic step with the same optimizer.

Baseline: ``zero_grad``, forward, cross-entropy, backward, ``Adam(fused=True)``, ``.item()``. With ``--adam default``
its optimizer is torch's ``Adam()`` without options, which is slower and what peers are usually compared to. The rows
of this library are timed *inside* :func:`pyrobnn.fit`, by a loader that lets the baseline run between its batches; so
they hold all that fit does for a batch after its first epoch, checks and reports included.

    python -m benchmarks.training_step --networks mlp lenet --threads 1 --rounds 21 --json training.json
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import peers
from benchmarks.networks import WORKLOADS, Workload
from benchmarks.timing import CLOCKS, Alternating, Timing, environment, markdown_table, write_json
from pyrobnn.estimators import EstimatorSpec
from pyrobnn.guides import MAP, Guide, LowRankNormal, MeanField
from pyrobnn.model.likelihoods import Categorical
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.training import fit, make_optimizer, train_step

Contender = Callable[[Workload, Alternating], None]


def deterministic_step(workload: Workload, compile: bool = False, **options: Any) -> Callable[[], float]:
    """The ordinary training step of the ordinary network."""
    net = copy.deepcopy(workload.net)
    optimizer = torch.optim.Adam(net.parameters(), lr=peers.LR, **options)
    network: Any = torch.compile(net) if compile else net

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(workload.x), workload.y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def repeated(make_step: Callable[[Workload], Callable[[], Any]]) -> Contender:
    """A contender that is a step function."""

    def run(workload: Workload, turns: Alternating) -> None:
        step = make_step(workload)
        for _ in turns:
            step()

    return run


class _PacedLoader:
    """A loader of one batch for the first epoch, and then of one batch for each turn of the contender."""

    def __init__(self, workload: Workload, turns: Alternating) -> None:
        self.dataset = range(workload.num_data)  # fit asks for its length only
        self.batch = workload.x, workload.y
        self.turns: Alternating | list[None] = [None]
        self.later = turns

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in self.turns:
            yield self.batch
        self.turns = self.later


def fitted(
    make_guide: Callable[[SupervisedModel], Guide], estimator: EstimatorSpec = None, compile: bool = False
) -> Contender:
    """A contender that is :func:`pyrobnn.fit` itself, from its second epoch on."""

    def run(workload: Workload, turns: Alternating) -> None:
        model, guide = bayesian(workload, make_guide)
        elbo = ELBO(estimator=estimator)
        options: dict[str, Any] = {"epochs": 2, "lr": peers.LR, "elbo": elbo, "progress": False, "compile": compile}
        fit(model, guide, _PacedLoader(workload, turns), **options)

    return run


def bayesian(workload: Workload, make_guide: Callable[[SupervisedModel], Guide]) -> tuple[SupervisedModel, Guide]:
    """The workload in this library."""
    model = SupervisedModel(workload.net, Categorical(), dist.Normal(0.0, 1.0), num_data=workload.num_data)
    return model, make_guide(model)


def single_step(
    model: SupervisedModel, guide: Guide, x: Tensor, y: Tensor, estimator: EstimatorSpec = None
) -> Callable[[], Any]:
    """One step as :func:`pyrobnn.fit` takes it."""
    elbo, optimizer = ELBO(estimator=estimator), make_optimizer(model, guide)
    return lambda: train_step(model, guide, elbo, optimizer, (x, y))


def pyro_svi_step(workload: Workload) -> Callable[[], float]:
    """Our model, guide and objective under Pyro's own SVI and optimizer."""
    pyro.clear_param_store()
    model, guide = bayesian(workload, MeanField)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": peers.LR}), ELBO())
    return lambda: svi.step(workload.x, workload.y)


ESTIMATORS = ("local_reparameterization", "flipout", "per_group", "per_example", "path_derivative")

CONTENDERS: dict[str, Contender] = {
    "deterministic, Adam(fused=True)": repeated(functools.partial(deterministic_step, fused=True)),
    "deterministic, Adam()": repeated(deterministic_step),
    "pyrobnn MeanField, fit": fitted(MeanField),
    "pyrobnn MeanField(antithetic=False), fit": fitted(functools.partial(MeanField, antithetic=False)),
    "pyrobnn MAP, fit": fitted(MAP),
    "pyrobnn MeanField, fit(compile=True)": fitted(MeanField, compile=True),
    "pyrobnn MAP, fit(compile=True)": fitted(MAP, compile=True),
    "deterministic, torch.compile": repeated(functools.partial(deterministic_step, compile=True, fused=True)),
    "pyrobnn LowRankNormal(rank=10), fit": fitted(LowRankNormal),
    **{f"pyrobnn MeanField, {name}": fitted(MeanField, name) for name in ESTIMATORS},
    "pyrobnn MeanField, Pyro's SVI": repeated(pyro_svi_step),
    "Pyro AutoNormal": repeated(functools.partial(peers.pyro_step, validate=True)),
    "Pyro AutoNormal, validation off": repeated(functools.partial(peers.pyro_step, validate=False)),
    "bayesian-torch Reparameterization": repeated(peers.bayesian_torch_step),
    "bayesian-torch Flipout": repeated(functools.partial(peers.bayesian_torch_step, kind="Flipout")),
    "posteriors vi.diag, in place": repeated(peers.posteriors_step),
    "BLiTZ": repeated(peers.blitz_step),
    "TyXe": repeated(peers.tyxe_step),
    "TyXe flipout": repeated(functools.partial(peers.tyxe_step, estimator="flipout")),
    "TyXe local_reparameterization": repeated(functools.partial(peers.tyxe_step, estimator="local_reparameterization")),
}


def measure(
    workload: Workload, rounds: int, block_seconds: float, clock: str, only: str = "", **baseline: Any
) -> list[Timing]:
    """All contenders on one network; those whose name does not hold ``only`` are left out.

    ``baseline`` are the options of the baseline.
    """
    timings = []
    for name, contender in CONTENDERS.items():
        if only.lower() not in name.lower():
            continue
        torch.manual_seed(0)
        turns = Alternating(deterministic_step(workload, **baseline), rounds, block_seconds, clock)
        try:
            contender(workload, turns)
        except ImportError as error:
            print(f"skipped {name!r} on {workload.name}: {error}", file=sys.stderr)
            continue
        timings.append(turns.result(name))
    return timings


def beside_mean_field(workload: Workload, rounds: int, block_seconds: float, clock: str) -> Timing:
    """A Gaussian of rank 10, as a multiple of a mean field instead of the network."""
    torch.manual_seed(0)
    steps = [single_step(*bayesian(workload, family), workload.x, workload.y) for family in (MeanField, LowRankNormal)]
    turns = Alternating(steps[0], rounds, block_seconds, clock)
    for _ in turns:
        steps[1]()
    return turns.result("pyrobnn LowRankNormal(rank=10)")


def arguments(description: str | None, rounds: int, networks: Mapping[str, Any] = WORKLOADS) -> argparse.ArgumentParser:
    """Options that benchmarks share."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=networks, default=list(networks), help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="pairs of blocks (default %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall, or cpu for a busy machine")
    parser.add_argument("--only", default="", help="contenders whose name holds this text")
    parser.add_argument("--json", metavar="PATH", help="write everything to a JSON file too")
    return parser


def main() -> None:
    parser = arguments(__doc__, rounds=21)
    parser.add_argument("--block-seconds", type=float, default=0.25, help="length of a block (default %(default)s)")
    parser.add_argument("--adam", choices=("fused", "default"), default="fused", help="the baseline's optimizer")
    parser.add_argument("--compiled", action="store_true", help="compile the network of the baseline")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    header = environment(options.threads, options.clock)
    header["baseline"] = f"Adam, {options.adam}" + (", torch.compile" if options.compiled else "")
    baseline = {"fused": options.adam == "fused", "compile": options.compiled}
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    tables = {}
    for name in options.networks:
        workload = WORKLOADS[name]()
        settings = options.rounds, options.block_seconds, options.clock, options.only
        tables[workload.title] = measure(workload, *settings, **baseline)
        table = markdown_table(f"Training step, {workload.title}", tables[workload.title], above=name == "tiny")
        print(f"\n{table}", flush=True)
        if options.only.lower() in "lowranknormal":
            title = f"Rank 10 beside a mean field, {workload.title}"
            tables[title] = [beside_mean_field(workload, *settings[:3])]
            print(f"\n{markdown_table(title, tables[title])}", flush=True)
    if options.json:
        write_json(options.json, header, tables)


if __name__ == "__main__":
    main()
