"""One step of SG-MCMC, as a multiple of a plain SGD step.

Baseline: ``zero_grad``, forward, cross-entropy, backward, ``torch.optim.SGD``, ``.item()``. The rows of this library
are timed *inside* :func:`pyrobnn.sample`, by a loader that lets the baseline run between its batches; BatchNorm is
frozen, in the baseline too. Rows with several chains are per chain: the time of a step of all of them, divided by their
number.

    python -m benchmarks.sampling --networks mlp resnet20 --threads 1 --rounds 21 --json sampling.json
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.networks import WORKLOADS, Workload
from benchmarks.timing import Alternating, Timing, environment, markdown_table, write_json
from benchmarks.training_step import arguments, repeated
from pyrobnn.model.likelihoods import Categorical
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling import SGHMC, SGLD, SGNHT, Kernel, PreconditionedSGLD, sample

STEP = 1e-9  # so small that no chain moves anywhere

KERNELS: dict[str, Kernel] = {
    "SGLD": SGLD(STEP),
    "PreconditionedSGLD, held fixed": PreconditionedSGLD(STEP, adaptation=1),
    "PreconditionedSGLD": PreconditionedSGLD(STEP, adaptation="always"),
    "SGHMC": SGHMC(STEP),
    "SGNHT": SGNHT(STEP),
}


def sgd_step(workload: Workload, **options: Any) -> Callable[[], float]:
    """The ordinary training step of the ordinary network."""
    net = _frozen(copy.deepcopy(workload.net))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=STEP, **options)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(workload.x), workload.y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _frozen(net: nn.Module) -> nn.Module:
    """BatchNorm's parameters and statistics as constants: what ``batch_norm="freeze"`` makes of them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    return net


def posteriors_step(workload: Workload) -> Callable[[], float]:
    """posteriors' ``sgmcmc.sgld`` in place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import posteriors
    net = _frozen(copy.deepcopy(workload.net))
    parameters = {name: value.detach().clone() for name, value in net.named_parameters() if value.requires_grad}

    def log_posterior(values: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        logits = functional_call(net, values, (x,))
        log_prior = posteriors.utils.diag_normal_log_prob(values)
        return -F.cross_entropy(logits, y) + log_prior / workload.num_data, logits

    transform = posteriors.sgmcmc.sgld.build(log_posterior, lr=STEP, temperature=1 / workload.num_data)
    state = transform.init(parameters)

    def step() -> float:
        nonlocal state
        state, _ = transform.update(state, (workload.x, workload.y), inplace=True)
        return float(state.log_posterior.item())

    return step


class _Enough(Exception):
    """The contender has had all its turns."""


class _PacedLoader:
    """One batch for the first pass, then one for each turn of the contender, then the end."""

    def __init__(self, workload: Workload, turns: Alternating) -> None:
        self.dataset = range(workload.num_data)  # sample asks for its length only
        self.batch = workload.x, workload.y
        self.turns: Alternating | list[None] | None = [None]
        self.later = turns

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in self.turns or ():
            yield self.batch
        if self.turns is self.later:
            raise _Enough
        self.turns = self.later


def sampled(kernel: Kernel, num_chains: int = 1) -> Callable[[Workload, Alternating], None]:
    """A contender that is :func:`pyrobnn.sample` itself, from its second pass on."""

    def run(workload: Workload, turns: Alternating) -> None:
        model = SupervisedModel(workload.net, Categorical(), dist.Normal(0.0, 1.0), num_data=workload.num_data)
        loader = _PacedLoader(workload, turns)
        with contextlib.suppress(_Enough):
            sample(
                model,
                loader,
                kernel=kernel,
                num_samples=1,
                thinning=2**40,
                num_chains=num_chains,
                batch_norm="freeze",
                init=workload.net,
                progress=False,
            )

    return run


def contenders(chains: list[int]) -> dict[str, tuple[Callable[[Workload, Alternating], None], int]]:
    """Contenders and their numbers of chains."""
    found = {
        "SGD": (repeated(sgd_step), 1),
        "SGD(fused=True)": (repeated(functools.partial(sgd_step, fused=True)), 1),
        "SGD(momentum=0.9)": (repeated(functools.partial(sgd_step, momentum=0.9)), 1),
        "posteriors sgmcmc.sgld, in place": (repeated(posteriors_step), 1),
        **{name: (sampled(kernel), 1) for name, kernel in KERNELS.items()},
    }
    for count in chains:
        found[f"SGLD, {count} chains, per chain"] = sampled(KERNELS["SGLD"], count), count
    return found


def measure(workload: Workload, options: Any) -> list[Timing]:
    """All contenders on one network; those whose name does not hold ``--only`` are left out."""
    timings = []
    for name, (contender, count) in contenders(options.chains).items():
        if options.only.lower() not in name.lower():
            continue
        torch.manual_seed(0)
        turns = Alternating(sgd_step(workload), options.rounds, options.block_seconds, options.clock)
        try:
            contender(workload, turns)
        except ImportError as error:
            print(f"skipped {name!r} on {workload.name}: {error}", file=sys.stderr)
            continue
        found = turns.result(name)
        each = {field: getattr(found, field) / count for field in ("milliseconds", "ratio", "low", "high")}
        timings.append(dataclasses.replace(found, **each))
    return timings


def main() -> None:
    parser = arguments(__doc__, rounds=21)
    parser.set_defaults(networks=["mlp", "resnet20", "tiny"])
    parser.add_argument("--block-seconds", type=float, default=0.25, help="length of a block (default %(default)s)")
    parser.add_argument("--chains", type=int, nargs="*", default=[2, 8, 32], help="default: 2 8 32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    header = environment(options.threads, options.clock)
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    tables = {}
    for name in options.networks:
        workload = WORKLOADS[name]()
        tables[workload.title] = measure(workload, options)
        print(f"\n{markdown_table(f'Step, {workload.title}', tables[workload.title])}", flush=True)
    if options.json:
        write_json(options.json, header, tables)


if __name__ == "__main__":
    main()
