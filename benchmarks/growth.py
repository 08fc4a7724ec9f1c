"""How cost and memory grow with the size of a problem: slopes of log against log.

One quantity is doubled from row to row, all else stays. Cost is processor time of one call after a first one; memory is
the most bytes that tensors held at one time in a call, apart from what was there before. A slope of 1 is proportional
growth, 0 is none. Slopes of cost are least squares over all sizes, once for each repeat; the table has their median,
smallest and largest, and the slope of the last doubling. Expected is what an operation count says for large sizes;
fixed costs make slopes smaller.

Usage: python -m benchmarks.growth [--repeats 5] [--only TEXT]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import pyrobnn as pb
from benchmarks.memory import peak_live_bytes
from benchmarks.timing import environment
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.guides import DeltaMixture, Guide, Laplace, LowRankNormal, MeanField
from pyrobnn.objectives import ELBO
from pyrobnn.sampling import HMC, SGLD, sample
from pyrobnn.training.gradient_step import train_step
from pyrobnn.training.optimizers import make_optimizer

_ROWS, _INPUTS, _CLASSES = 64, 32, 10
Call = Callable[[], Any]


@dataclass(frozen=True)
class Growth:
    """One quantity that grows.

    Attributes:
        name: What is called, and what grows.
        make: From a size to the call.
        sizes: The sizes.
        cost, memory: The slopes that an operation count gives.
        calls: Calls for each time that is taken.
    """

    name: str
    make: Callable[[int], Call]
    sizes: Sequence[int]
    cost: float
    memory: float
    calls: int = 3


def classifier(width: int = 64, depth: int = 2) -> nn.Module:
    """A perceptron with ``depth`` hidden layers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(_INPUTS, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, _CLASSES))


def model_of(net: nn.Module, num_data: int = _ROWS) -> pb.SupervisedModel:
    return pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=num_data)


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs and labels."""
    return torch.randn(count, _INPUTS), torch.randint(_CLASSES, (count,))


def step(net: nn.Module, family: Callable[..., Guide] = MeanField, batch: int = _ROWS, draws: int = 1) -> Call:
    """A training step."""
    model = model_of(net, batch)
    guide = family(model)
    elbo, optimizer, data = ELBO(num_particles=draws), make_optimizer(model, guide), rows(batch)
    return lambda: train_step(model, guide, elbo, optimizer, data)


def prediction(net: nn.Module, inputs: int = _ROWS, draws: int = 16) -> Call:
    """A prediction under a mean field."""
    model = model_of(net)
    guide, x = MeanField(model), rows(inputs)[0]
    return lambda: pb.predict(model, guide, x, num_samples=draws)


def ensemble(members: int) -> Call:
    """A training step of all members."""
    return step(classifier(), lambda model: DeltaMixture(model, members, vmap=False))


def laplace(count: int) -> Call:
    """The curvature of a data set in batches of 64."""
    data = [rows(_ROWS) for _ in range(count // _ROWS)]
    model = model_of(classifier(), count)
    return lambda: Laplace(model, structure="kronecker").fit(model, data)


def sgld(chains: int) -> Call:
    """Fifty steps of every chain."""
    model, data = model_of(classifier()), [rows(_ROWS)]
    options: dict[str, Any] = {"kernel": SGLD(1e-6), "num_samples": 5, "thinning": 10, "vmap": False}
    return lambda: sample(model, data, num_chains=chains, progress=False, **options)


def hmc(chains: int) -> Call:
    """Twenty transitions of every chain, eight leapfrogs each, uncompiled."""
    model, data = model_of(classifier(16, 1)), [rows(_ROWS)]
    kernel = HMC(step_size=1e-3, num_leapfrog=8, compile=False)
    return lambda: sample(model, data, kernel=kernel, num_samples=20, num_chains=chains, progress=False)


GROWTH = [
    Growth("mean-field step: width", lambda n: step(classifier(n)), (256, 512, 1024, 2048), 2.0, 2.0),
    Growth("rank 10 step: width", lambda n: step(classifier(n), LowRankNormal), (128, 256, 512, 1024), 2.0, 2.0),
    Growth("mean-field step: depth", lambda n: step(classifier(256, n)), (4, 8, 16, 32), 1.0, 1.0),
    Growth(
        "mean-field step: rows of a batch", lambda n: step(classifier(256), batch=n), (512, 1024, 2048, 4096), 1.0, 1.0
    ),
    Growth("mean-field step: draws", lambda n: step(classifier(256), draws=n), (4, 8, 16, 32), 1.0, 0.0),
    Growth("mean-field prediction: draws", lambda n: prediction(classifier(256), 256, n), (16, 32, 64, 128), 1.0, 1.0),
    Growth(
        "mean-field prediction: inputs", lambda n: prediction(classifier(256), n), (512, 1024, 2048, 4096), 1.0, 1.0
    ),
    Growth("mean-field prediction: width", lambda n: prediction(classifier(n)), (256, 512, 1024, 2048), 2.0, 2.0),
    Growth("ensemble step: members", ensemble, (4, 8, 16, 32), 1.0, 0.0),
    Growth("Laplace, Kronecker: data", laplace, (256, 512, 1024, 2048), 1.0, 0.0),
    Growth("SGLD: chains", sgld, (2, 4, 8, 16), 1.0, 1.0, 1),
    Growth("HMC: chains", hmc, (4, 8, 16, 32, 64), 1.0, 1.0, 1),
]


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Least squares of log values against log sizes."""
    x, y = [math.log(size) for size in sizes], [math.log(max(value, 1e-12)) for value in values]
    return statistics.linear_regression(x, y).slope


def measure(growth: Growth, repeats: int) -> tuple[list[float], float, list[float], list[int]]:
    """Slopes of cost by repeat, slope of memory, seconds by size, bytes at the first and last."""
    calls = [growth.make(size) for size in growth.sizes]
    peaks = []
    for call in calls:
        call()
        peaks.append(peak_live_bytes(call))
    times: list[list[float]] = []
    for _ in range(repeats):  # sizes in turn, so that a slow minute slows all of them
        found = []
        for call in calls:
            started = time.process_time()
            for _ in range(growth.calls):
                call()
            found.append((time.process_time() - started) / growth.calls)
        times.append(found)
    middle = [statistics.median(column) for column in zip(*times, strict=True)]
    slopes = sorted(slope(growth.sizes, found) for found in times)
    return slopes, slope(growth.sizes, peaks), middle, [peaks[0], peaks[-1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="(default %(default)s)")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("\n".join(f"- {key}: {value}" for key, value in environment(1, "cpu").items()))
    print("\n| call: what grows | sizes | ms | cost: slope | last | expected | MB | memory: slope | expected |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for growth in GROWTH:
        if options.only.lower() not in growth.name.lower():
            continue
        with validation_enabled(False):
            slopes, memory, seconds, peaks = measure(growth, options.repeats)
        cells = [
            growth.name,
            f"{growth.sizes[0]} to {growth.sizes[-1]}",
            f"{1e3 * seconds[0]:.1f} to {1e3 * seconds[-1]:.0f}",
            f"**{statistics.median(slopes):.2f}** ({slopes[0]:.2f}–{slopes[-1]:.2f})",
            f"{math.log2(seconds[-1] / seconds[-2]):.2f}",
            f"{growth.cost:.0f}",
            f"{peaks[0] / 1e6:.2f} to {peaks[1] / 1e6:.2f}",
            f"**{memory:.2f}**",
            f"{growth.memory:.0f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
