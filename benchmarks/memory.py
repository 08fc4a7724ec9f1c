"""Peak memory of training, in multiples of the bytes of the network's weights.

For each way of training two numbers: the most bytes that tensors held at one time, which is the same in every run, and
by how much the process grew beyond its size before it, which the allocator decides. Everything counts: model, guide,
optimizer, gradients, activations, the copy from which :func:`pyrobnn.fit` restores a state. The network that the model
was made from does not, but in one row; data do not.

Usage: python -m benchmarks.memory [--width 2000]
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO, autoguide
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.timing import environment
from pyrobnn.guides import MAP, Guide, LowRankNormal, MeanField
from pyrobnn.objectives import ELBO
from pyrobnn.training.gradient_step import train_step
from pyrobnn.training.optimizers import make_optimizer

__all__ = ["peak_live_bytes"]

_STEPS = 4
_ROWS = 32


def peak_live_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that tensors made in a call held at one time on the CPU, temporary memory of operations included.

    Args:
        run: The call. Tensors that were made before it do not count.
    """
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
        gc.collect()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: (event["ts"], event["args"]["Ev Idx"])):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def network(width: int) -> nn.Module:
    """A perceptron 784-width-width-10."""
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def batch() -> tuple[Tensor, Tensor]:
    """Random images and classes."""
    return torch.randn(_ROWS, 784), torch.randint(10, (_ROWS,))


def model_of(net: nn.Module) -> pb.SupervisedModel:
    return pb.SupervisedModel(net, pb.likelihoods.Categorical(), pb.priors.he(), num_data=_STEPS * _ROWS)


def fitted(width: int, family: Callable[..., Guide] = MeanField, *, keep: bool = False, **options: Any) -> None:
    """Two epochs of :func:`pyrobnn.fit`; ``keep`` for a network that the user holds meanwhile."""
    nets = [network(width)]
    model = model_of(nets[0] if keep else nets.pop())
    guide = family(model)
    pb.fit(model, guide, [batch()] * _STEPS, epochs=2, progress=False, **options)


def stepped(width: int, family: Callable[..., Guide] = MeanField) -> None:
    """Training steps by themselves, as :func:`pyrobnn.fit` takes them."""
    model = model_of(network(width))
    guide = family(model)
    optimizer, elbo, given = make_optimizer(model, guide), ELBO(), batch()
    for _ in range(_STEPS):
        train_step(model, guide, elbo, optimizer, given)


def deterministic(width: int) -> None:
    """The network itself, with Adam."""
    net = network(width)
    optimizer, (x, y) = torch.optim.Adam(net.parameters(), fused=True), batch()
    for _ in range(_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def auto_normal(width: int) -> None:
    """Pyro's own guide and SVI."""
    pyro.clear_param_store()
    model = model_of(network(width))
    svi = SVI(model, autoguide.AutoNormal(model), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    given = batch()
    for _ in range(_STEPS):
        svi.step(*given)
    pyro.clear_param_store()


CONTENDERS: dict[str, Callable[[int], None]] = {
    "the network itself": deterministic,
    "mean field, a step": stepped,
    "mean field, `fit`": fitted,
    "mean field, `fit`, the user keeps the network": partial(fitted, keep=True),
    "mean field, `fit`, 3 draws a step": lambda width: fitted(width, elbo=ELBO(num_particles=3)),
    "mean field, `fit`, `accumulate=2`": partial(fitted, accumulate=2),
    "mean field, `fit`, flipout": lambda width: fitted(width, elbo=ELBO(estimator="flipout")),
    "mean field, `fit`, local reparameterization": lambda width: fitted(
        width, elbo=ELBO(estimator="local_reparameterization")
    ),
    "rank 10, a step": partial(stepped, family=partial(LowRankNormal, rank=10)),
    "MAP, a step": partial(stepped, family=MAP),
    "Pyro `AutoNormal`, a step": auto_normal,
}


def growth_of_process(name: str, width: int) -> int:
    """By how many bytes the process's peak lies above its size before the call; to be called in a fresh process."""
    CONTENDERS[name](8)  # imports and code
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    CONTENDERS[name](width)
    lines = Path("/proc/self/status").read_text().splitlines()  # what getrusage says is inherited from the parent
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1]) - before


def rows(width: int) -> Iterator[tuple[str, float, float]]:
    """Name, peak of live bytes, growth of a process; in multiples of the weights' bytes."""
    unit = sum(parameter.nbytes for parameter in network(width).parameters())
    for name, run in CONTENDERS.items():
        run(8)
        live = peak_live_bytes(partial(run, width))
        command = [sys.executable, "-m", "benchmarks.memory", "--width", str(width), "--process", name]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        yield name, live / unit, int(found.stdout.split()[-1]) / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--width", type=int, default=2000, help="units of the hidden layers (default %(default)s)")
    parser.add_argument("--process", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.process:
        print(growth_of_process(options.process, options.width))
        return
    print("\n".join(f"- {key}: {value}" for key, value in environment(1, "none").items()))
    print("\n| training | tensors | process |\n|---|---:|---:|")
    for name, live, process in rows(options.width):
        print(f"| {name} | {live:.2f} | {process:.1f} |", flush=True)


if __name__ == "__main__":
    main()
