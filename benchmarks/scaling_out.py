"""What a second process costs and gives: data-parallel mean field on two gloo processes, members over a pool.

    python -m benchmarks.scaling_out [--json FILE]

Each row trains a perceptron of three layers with mean field for ``--steps`` steps of ``--rows`` rows, in one process
and in two that share the rows. It reports the fastest of ``--repeats`` epochs in milliseconds for each step; the
processor time of each process for each step, which other programs on the machine disturb less; and the time of a bare
all-reduce of a gradient of that size. Members are trained one after another, and on a pool of two
processes that is warm. With as many processes as cores and a thread each, two can at best halve a time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.guides import DeltaMixture, MeanField
from pyrobnn.training import fit_members

INPUTS = 32


def model_of(width: int, num_data: int) -> pb.SupervisedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    return pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=num_data)


def data(rows: int, steps: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows * steps, INPUTS, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :1].sin()), rows, shuffle=True)


def step_time(width: int, rows: int, steps: int, repeats: int, parallel: bool) -> dict[str, float]:
    """Milliseconds of a step, and of an all-reduce of its gradient, in this process."""
    model = model_of(width, rows * steps)
    guide = MeanField(model)
    options: dict[str, Any] = {"data_parallel": "own_draws"} if parallel else {}
    started = time.process_time()
    history = pb.fit(model, guide, data(rows, steps), epochs=repeats, progress=False, seed=0, **options)
    cpu = time.process_time() - started
    found = {"step": 1e3 * min(history.seconds) / steps, "cpu": 1e3 * cpu / (steps * repeats)}
    found["numbers"] = 2.0 * guide.layout.size
    if parallel:
        gradient = torch.zeros(2 * guide.layout.size)
        times = []
        for _ in range(10):
            torch.distributed.barrier()
            started = time.perf_counter()
            torch.distributed.all_reduce(gradient)
            times.append(time.perf_counter() - started)
        found["all-reduce"] = 1e3 * min(times)
    return found


def _rank(path: Path, rank: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(path / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    (path / f"{rank}").write_bytes(pickle.dumps(step_time(*arguments, parallel=True)))
    torch.distributed.destroy_process_group()


def on_two(*arguments: Any) -> dict[str, float]:
    """The slower of two processes."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        started = [context.Process(target=_rank, args=(Path(folder), rank, arguments)) for rank in range(2)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        found = [pickle.loads((Path(folder) / f"{rank}").read_bytes()) for rank in range(2)]
    return {name: max(one[name] for one in found) for name in found[0]}


def members(repeats: int) -> dict[str, float]:
    """Seconds for four members, in this process and on a warm pool of two."""
    model, loader = model_of(128, 4096), data(128, 32)

    def seconds(executor: Any) -> float:
        started = time.perf_counter()
        fit_members(model, DeltaMixture(model, 4), loader, executor=executor, epochs=5, seed=0)
        return time.perf_counter() - started

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(started, range(2)))
        apart = min(seconds(pool) for _ in range(repeats))
    return {"serial": min(seconds(None) for _ in range(repeats)), "two processes": apart}


def started(_: int) -> None:
    """Keeps a worker busy, so that both have started."""
    time.sleep(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, float]] = []
    columns = "one process, ms | each of two, ms | CPU of one, ms | CPU of each of two, ms | all-reduce, ms"
    print(f"| weights | rows | {columns} |")
    print("|---|---|---|---|---|---|---|")
    for width in options.widths:
        for size in options.rows:
            arguments = (width, size, options.steps, options.repeats)
            one, two = step_time(*arguments, parallel=False), on_two(*arguments)
            rows.append({"width": width, "rows": size, "one": one["step"], "cpu of one": one["cpu"]} | two)
            print(
                f"| {int(two['numbers'] / 2):,} | {size} | {one['step']:.1f} | {two['step']:.1f} | {one['cpu']:.1f} | "
                f"{two['cpu']:.1f} | {two['all-reduce']:.2f} |",
                flush=True,
            )
    apart = members(1)
    print(f"\nfour members: {apart['serial']:.1f} s serial, {apart['two processes']:.1f} s on two processes")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.machine()}, torch {torch.__version__}")
    if options.json:
        Path(options.json).write_text(json.dumps({"steps": rows, "members": apart}, indent=1))


if __name__ == "__main__":
    main()
