"""All that is measured on an accelerator, in one command of less than ten minutes.

1. The tests that need a CUDA device.
2. Training steps of a perceptron, LeNet, ResNet-20, ResNet-18 at 224 x 224 and a small transformer: the mean field,
   uncompiled and compiled, and other libraries, as a multiple of the deterministic step, which is once uncompiled and
   once compiled.
3. Prediction of 32 draws in one vectorized call, as a multiple of one draw after another.
4. A step of 32 chains of SGLD, per chain, as a multiple of an SGD step; a leapfrog of 32 chains of HMC.
5. Forward passes in bfloat16: their time and the error of probabilities.

    python -m benchmarks.gpu --json gpu.json
    python -m benchmarks.gpu --device cpu --rounds 1 --networks mlp --parts steps predict chains bf16   # a dry run
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks import hmc, sampling, training_step
from benchmarks.networks import WORKLOADS, Workload
from benchmarks.timing import Alternating, Timing, environment, markdown_table, write_json
from benchmarks.training_step import bayesian, deterministic_step
from pyrobnn.guides import MeanField
from pyrobnn.prediction import predict
from pyrobnn.sampling import HMC
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.kernels.hmc import Chains

DRAWS, CHAINS = 32, 32
CONTENDERS = (
    "pyrobnn MeanField, fit",
    "pyrobnn MeanField, fit(compile=True)",
    "Pyro AutoNormal, validation off",
    "bayesian-torch Reparameterization",
    "posteriors vi.diag, in place",
)


class _Transformer(nn.Module):
    """Two encoder layers over 64 tokens, and a linear layer on their mean."""

    def __init__(self, width: int = 128, vocabulary: int = 1000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden.mean(1))


def transformer() -> Workload:
    torch.manual_seed(0)
    tokens = torch.randint(1000, (64, 64))
    return Workload(
        "transformer", "2-layer transformer, batch 64", _Transformer(), tokens, torch.randint(10, (64,)), 50_000
    )


def resnet18() -> Workload:
    import torchvision

    torch.manual_seed(0)
    net, x = torchvision.models.resnet18(), torch.randn(64, 3, 224, 224)
    return Workload("resnet18", "ResNet-18 at 224, batch 64", net, x, torch.randint(1000, (64,)), 1_281_167)


NETWORKS: dict[str, Callable[[], Workload]] = {
    **{name: WORKLOADS[name] for name in ("mlp", "lenet", "resnet20")},
    "resnet18": resnet18,
    "transformer": transformer,
}


def moved(workload: Workload, device: torch.device) -> Workload:
    """The workload on a device."""
    return replace(workload, net=workload.net.to(device), x=workload.x.to(device), y=workload.y.to(device))


def steps(workload: Workload, rounds: int, compiled: bool) -> list[Timing]:
    """Training steps beside the deterministic one."""
    found = []
    for name in CONTENDERS:
        torch.manual_seed(0)
        baseline = deterministic_step(workload, fused=True, compile=compiled)
        turns = Alternating(baseline, rounds, 0.25)
        try:
            training_step.CONTENDERS[name](workload, turns)
        except ImportError as error:
            print(f"skipped {name!r}: {error}", file=sys.stderr)
            continue
        found.append(turns.result(name))
    return found


def predictions(workload: Workload, rounds: int) -> list[Timing]:
    """One vectorized call beside one draw after another."""
    model, guide = bayesian(workload, MeanField)

    def run(method: Any) -> Callable[[], Any]:
        return lambda: float(predict(model, guide, workload.x, DRAWS, method=method).mean.sum())

    turns = Alternating(run("loop"), rounds, 0.25)
    for _ in turns:
        run("vmap")()
    return [turns.result(f"{workload.title}: {DRAWS} draws by vmap beside a loop")]


def chains(workload: Workload, rounds: int, device: torch.device) -> list[Timing]:
    """A step of 32 chains per chain, beside SGD; a leapfrog of 32 chains beside one of a single chain."""
    turns = Alternating(sampling.sgd_step(workload), rounds, 0.25)
    sampling.sampled(sampling.KERNELS["SGLD"], CHAINS)(workload, turns)
    timing = turns.result(f"{workload.title}: SGLD, {CHAINS} chains, per chain")
    figures = {name: getattr(timing, name) / CHAINS for name in ("milliseconds", "ratio", "low", "high")}
    found = [replace(timing, **figures)]

    def leapfrogs(count: int) -> Callable[[], None]:
        data = tuple(part.to(device) for part in hmc.data())
        potential = Potential(hmc.model().to(device), data)
        kernel = HMC(hmc.STEP_SIZE, hmc.LEAPFROGS, adapt_step_size=False, adapt_mass=None, compile=True)
        with torch.no_grad():
            running = Chains(kernel, potential, potential.start().repeat(count, 1), 0, 10**6, seed=0)

        def transition() -> None:
            with torch.no_grad():
                running.transition(0)

        return transition

    turns, many = Alternating(leapfrogs(1), rounds, 0.25), leapfrogs(CHAINS)
    for _ in turns:
        many()
    return [*found, turns.result(f"HMC, {CHAINS} chains beside one")]


def bfloat16(workload: Workload, rounds: int, device: torch.device) -> list[Timing]:
    """A forward pass under autocast beside one in single precision; prints the error of the probabilities."""
    net = workload.net.eval()

    def forward(is_half: bool) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=is_half):
            return net(workload.x).float().softmax(-1)

    error = (forward(True) - forward(False)).abs()
    print(f"bfloat16, {workload.title}: error of probabilities {float(error.max()):.1e} at most", flush=True)
    turns = Alternating(lambda: float(forward(False).sum()), rounds, 0.25)
    for _ in turns:
        float(forward(True).sum())
    net.train()
    return [turns.result(f"{workload.title}: forward in bfloat16")]


def main() -> None:
    parts = ("tests", "steps", "predict", "chains", "bf16")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of blocks (default %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--json", metavar="PATH", help="write everything to a JSON file too")
    options = parser.parse_args()
    device = torch.device(options.device)
    header = environment(torch.get_num_threads(), "wall")
    if device.type == "cuda":
        header["accelerator"] = torch.cuda.get_device_name(device)
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    tables: dict[str, list[Timing]] = {}
    if "tests" in options.parts:
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests"])
        print(f"- tests: exit code {done.returncode}", flush=True)
    for name in options.networks:
        workload, started = moved(NETWORKS[name](), device), time.perf_counter()
        if "steps" in options.parts:
            tables[f"Training step, {workload.title}"] = steps(workload, options.rounds, False)
            tables[f"Training step beside the compiled one, {workload.title}"] = steps(workload, options.rounds, True)
        if "predict" in options.parts:
            tables[f"Prediction, {workload.title}"] = predictions(workload, options.rounds)
        if "chains" in options.parts and name == "mlp":
            tables["Chains"] = chains(workload, options.rounds, device)
        if "bf16" in options.parts:
            tables[f"bfloat16, {workload.title}"] = bfloat16(workload, options.rounds, device)
        for title in [title for title in tables if title.endswith(workload.title) or title == "Chains"]:
            print(f"\n{markdown_table(title, tables[title])}", flush=True)
        print(f"\n{name}: {time.perf_counter() - started:.0f} s", flush=True)
    if options.json:
        write_json(options.json, header, tables)


if __name__ == "__main__":
    main()
