"""Posterior predictions, as a multiple of as many deterministic forwards; and their peak memory.

Baseline (the floor): one forward of the plain network per draw, in evaluation mode without gradients, over the inputs
in parts of the size that the library takes. A second row gives the floor over the full batch. Drawing the weights is
included in every contender; so are, for this library, the entropies and votes it returns beside the mean.

    python -m benchmarks.prediction --networks mlp lenet --draws 32 --inputs 1000 --rounds 9
    python -m benchmarks.prediction --memory 1000 10000 100000
    python -m benchmarks.prediction --latency --draws 100

Latency: one input under kept draws, as a multiple of the stacked product (one ``baddbmm`` a layer for all draws).
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyro
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import peers
from benchmarks.networks import WORKLOADS, Workload
from benchmarks.timing import Alternating, Timing, environment, markdown_table, write_json
from benchmarks.training_step import arguments, bayesian
from pyrobnn.guides import MeanField
from pyrobnn.model.likelihoods import Categorical
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import Predictive, predict
from pyrobnn.prediction.rows import RowCutter
from pyrobnn.prediction.vectorization import Method

Contender = Callable[[Workload, Tensor, int], Callable[[], Any]]


def floor(workload: Workload, x: Tensor, draws: int) -> Callable[[], Tensor]:
    """As many deterministic forwards as there are draws, over the parts of the inputs that the library makes."""
    net = workload.net.eval()
    with torch.no_grad():
        parts = RowCutter(net, None, 2**26).parts(x, net)  # a quarter of the default of max_bytes
    return _repeat(lambda: torch.cat([net(part.inputs) for part in parts]), draws)


def parts_of_256(workload: Workload, x: Tensor, draws: int) -> Callable[[], Tensor]:
    """The floor in parts of 256 rows."""
    return _repeat(lambda: torch.cat([workload.net(part) for part in x.split(256)]), draws)


def full_batch(workload: Workload, x: Tensor, draws: int) -> Callable[[], Tensor]:
    """The floor in one part."""
    return _repeat(lambda: workload.net(x), draws)


def ours(workload: Workload, x: Tensor, draws: int) -> Callable[[], Any]:
    """:func:`pyrobnn.predict`."""
    model, guide = bayesian(workload, MeanField)
    return lambda: predict(model, guide, x, draws)


def our_predictive(workload: Workload, x: Tensor, draws: int) -> Callable[[], Any]:
    """The drop-in for Pyro's class, on the same model."""
    model, guide = bayesian(workload, MeanField)
    model.eval()
    sample = Predictive(model, guide=guide, num_samples=draws, return_sites=("_RETURN",))
    return lambda: sample(x)["_RETURN"].softmax(-1).mean(0)


def pyro_predictive(workload: Workload, x: Tensor, draws: int) -> Callable[[], Any]:
    """Pyro's Predictive with an AutoNormal guide."""
    model, guide = peers.plain_pyro(workload)
    sample = pyro.infer.Predictive(model, guide=guide, num_samples=draws, return_sites=("_RETURN",))

    def run() -> Tensor:
        with torch.no_grad():
            return sample(x)["_RETURN"].softmax(-1).mean(0)

    return run


def bayesian_torch_loop(workload: Workload, x: Tensor, draws: int) -> Callable[[], Any]:
    """bayesian-torch, one forward per draw."""
    net: nn.Module = peers.bayesian_torch_net(workload).eval()
    return _repeat(lambda: net(x).softmax(-1), draws)


def _repeat(forward: Callable[[], Tensor], draws: int) -> Callable[[], Tensor]:
    """The mean of ``forward`` over the draws."""

    def run() -> Tensor:
        with torch.no_grad():
            total = forward()
            for _ in range(draws - 1):
                total += forward()
            return total / draws

    return run


CONTENDERS: dict[str, Contender] = {
    "floor: deterministic, parts as predict takes them": floor,
    "floor: deterministic, parts of 256": parts_of_256,
    "floor: deterministic, full batch": full_batch,
    "pyrobnn predict": ours,
    "pyrobnn Predictive": our_predictive,
    "Pyro Predictive": pyro_predictive,
    "bayesian-torch Reparameterization": bayesian_torch_loop,
}


def measure(workload: Workload, inputs: int, draws: int, rounds: int, clock: str, only: str = "") -> list[Timing]:
    """All contenders on one network, one call to a block."""
    x = workload.inputs(inputs)
    workload.net.eval()
    timings = []
    for name, contender in CONTENDERS.items():
        if only.lower() not in name.lower():
            continue
        try:
            run = contender(workload, x, draws)
        except ImportError as error:
            print(f"skipped {name!r} on {workload.name}: {error}", file=sys.stderr)
            continue
        turns = Alternating(floor(workload, x, draws), rounds, 0.0, clock)
        for _ in turns:
            run()
        timings.append(turns.result(name))
    return timings


# --------------------------------------------------------------------------------------------------------- latency

LATENCY_SIZES = ((64, 64, 10), (784, 400, 400, 10))
"""Sizes of the perceptrons' layers."""


def measure_latency(sizes: tuple[int, ...], draws: int, rounds: int, clock: str) -> list[Timing]:
    """:func:`pyrobnn.predict` of one input by each method, beside the product of the stacked weights."""
    torch.manual_seed(0)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())][:-1]
    model = SupervisedModel(nn.Sequential(*layers), Categorical(), num_data=1000)
    kept, x = MeanField(model).sample(draws), torch.randn(1, sizes[0])
    weights = [(kept[f"net.{2 * i}.weight"].mT, kept[f"net.{2 * i}.bias"].unsqueeze(1)) for i in range(len(sizes) - 1)]

    def stacked() -> Tensor:
        h = x.expand(draws, 1, -1)
        for index, (weight, bias) in enumerate(weights):
            h = torch.baddbmm(bias, h if index == 0 else h.relu(), weight)
        return h.softmax(-1).mean(0)

    timings = []
    with torch.no_grad():
        torch.testing.assert_close(predict(model, kept, x, draws).mean, stacked())
        for method in get_args(Method):
            turns = Alternating(stacked, rounds, 0.05, clock)
            for _ in turns:
                predict(model, kept, x, draws, method=method)
            timings.append(turns.result(f"predict, method={method!r}"))
    return timings


# ---------------------------------------------------------------------------------------------------------- memory


def peak_memory(name: str, inputs: int, draws: int, threads: int) -> dict[str, float]:
    """Peak memory of one prediction above what was in use before it, measured in a fresh process (Linux).

    Returns:
        Mebibytes: ``peak``, of which ``result`` are the tensors returned, and ``input``, which set-up holds.
    """
    command = [
        sys.executable,
        __file__,
        "--peak",
        name,
        str(inputs),
        "--draws",
        str(draws),
        "--threads",
        str(threads),
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _measure_peak(name: str, inputs: int, draws: int) -> dict[str, float]:
    workload = WORKLOADS[name]()
    x = workload.inputs(inputs)
    model, guide = bayesian(workload, MeanField)
    predict(model, guide, x[:2], 1)  # libraries load and caches fill before we look
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _status("VmRSS")
    prediction = predict(model, guide, x, draws)
    peak = _status("VmHWM") - before
    tensors = [value for value in vars(prediction).values() if isinstance(value, Tensor)]
    result = sum(t.numel() * t.element_size() for t in tensors)
    return {"peak": peak / 1024, "result": result / 2**20, "input": x.numel() * x.element_size() / 2**20}


def _status(key: str) -> int:
    """A line of this process's memory accounts, in kibibytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def memory_table(rows: list[dict[str, Any]]) -> str:
    """The peaks as a markdown table."""
    lines = [
        "| network | inputs | peak above set-up (MiB) | of it the result | the inputs hold |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['network']} | {r['inputs']:,} | {r['peak']:.1f} | {r['result']:.1f} | {r['input']:.1f} |" for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.set_defaults(networks=["mlp", "lenet", "resnet20"])
    parser.add_argument("--draws", type=int, default=32, help="posterior draws (default %(default)s)")
    parser.add_argument("--inputs", type=int, default=1000, help="number of inputs (default %(default)s)")
    parser.add_argument(
        "--memory", type=int, nargs="*", metavar="N", help="peak memory at these numbers of inputs instead"
    )
    parser.add_argument("--latency", action="store_true", help="time for one input under kept draws instead")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "N"), help="peak memory of this very process, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(_measure_peak(options.peak[0], int(options.peak[1]), options.draws)))
        return
    header = environment(options.threads, options.clock)
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    tables, peaks = {}, []
    if options.latency:
        for sizes in LATENCY_SIZES:
            title = f"One input, {options.draws} kept draws, perceptron {'-'.join(map(str, sizes))}"
            tables[title] = measure_latency(sizes, options.draws, options.rounds, options.clock)
            print(f"\n{markdown_table(title, tables[title])}", flush=True)
    elif options.memory is not None:
        for name in options.networks:
            for inputs in options.memory:
                peak = peak_memory(name, inputs, options.draws, options.threads)
                peaks.append({"network": name, "inputs": inputs, **peak})
        print(f"\n{memory_table(peaks)}")
    else:
        for name in options.networks:
            workload = WORKLOADS[name]()
            title = f"{options.draws} draws of {options.inputs:,} inputs, {workload.title.split(',')[0]}"
            tables[title] = measure(
                workload, options.inputs, options.draws, options.rounds, options.clock, options.only
            )
            print(f"\n{markdown_table(title, tables[title])}", flush=True)
    if options.json:
        write_json(options.json, header, tables, peak_memory=peaks)


if __name__ == "__main__":
    main()
