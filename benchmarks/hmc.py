"""The cost of a leapfrog on a small network, as a multiple of one plain torch value-and-gradient; whole runs.

A 1-50-1 tanh network (151 weights), 100 data, known noise. Baseline: the potential written by hand on a flat vector,
``torch.autograd.grad``. Step size 0.001 and trajectories of 63 leapfrogs without adaptation, so that samplers do the
same work. "Running" is what a transition costs divided by its leapfrogs and chains, momenta and acceptance included;
"whole run" is 4 chains of 1,000 transitions in a new process, from the data to the draws, with everything that is
compiled on the way (importing the libraries is left out, and told apart). One core for all of it.

    python -m benchmarks.hmc --rounds 15 --json hmc.json
    python -m benchmarks.hmc --numpyro-python path/to/python   # NumPyro's rows, from an environment that has it
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.timing import CLOCKS, Alternating, Timing, environment, markdown_table, write_json
from pyrobnn.model.likelihoods import Normal
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling import HMC
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.kernels.hmc import Chains

HIDDEN, NUM_DATA, NOISE = 50, 100, 0.1
STEP_SIZE, LEAPFROGS = 1e-3, 63
CHAINS, TRANSITIONS = 4, 1000

Count = Callable[[], int]
"""Does something and says how many leapfrogs (of one chain) it took."""


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2, 2, NUM_DATA).unsqueeze(-1)
    return x, torch.sin(2 * x) + NOISE * torch.randn(NUM_DATA, 1, generator=generator)


def model(hidden: int = HIDDEN) -> SupervisedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    return SupervisedModel(net, Normal(NOISE), dist.Normal(0.0, 1.0), num_data=NUM_DATA)


def value_and_gradient() -> Callable[[], Any]:
    """The baseline."""
    x, y = data()
    flat = Potential(model(), (x, y)).start().requires_grad_()

    def evaluate() -> tuple[Tensor, Tensor]:
        w1, b1, w2, b2 = flat.split([HIDDEN, HIDDEN, HIDDEN, 1])
        mean = torch.tanh(x @ w1.view(1, -1) + b1) @ w2.view(-1, 1) + b2
        value = 0.5 * ((y - mean) / NOISE).square().sum() + 0.5 * flat.square().sum()
        return value, torch.autograd.grad(value, flat)[0]

    return evaluate


# ------------------------------------------------------------------------------------------------------- running


def ours(num_chains: int, compile: bool) -> Count:
    potential = Potential(model(), data())
    kernel = HMC(STEP_SIZE, LEAPFROGS, adapt_step_size=False, adapt_mass=None, compile=compile)
    running = Chains(kernel, potential, potential.start().repeat(num_chains, 1), 0, 10**6, seed=0)

    def transition() -> int:
        with torch.no_grad():
            running.transition(0)
        return LEAPFROGS * num_chains

    return transition


def recorded_gradient() -> Count:
    potential = Potential(model(), data())
    flat = potential.start()
    evaluate = potential.recorded(flat)

    def once() -> int:
        with torch.no_grad():
            evaluate(flat)
        return 1

    return once


RUNNING: dict[str, Callable[[], Count]] = {
    "value and gradient of the model, recorded": recorded_gradient,
    "HMC eager, 1 chain": lambda: ours(1, False),
    "HMC eager, 32 chains, per chain": lambda: ours(32, False),
    "HMC compiled, 1 chain": lambda: ours(1, True),
    "HMC compiled, 4 chains, per chain": lambda: ours(4, True),
    "HMC compiled, 32 chains, per chain": lambda: ours(32, True),
}


def measure(name: str, count: Count, rounds: int, block_seconds: float, clock: str) -> Timing:
    """Per leapfrog of a chain, beside one value and gradient."""
    turns = Alternating(value_and_gradient(), rounds, block_seconds, clock)
    leapfrogs = calls = 0
    for _ in turns:
        leapfrogs += count()
        calls += 1
    timing, per = turns.result(name), leapfrogs / calls
    return replace(
        timing,
        milliseconds=timing.milliseconds / per,
        ratio=timing.ratio / per,
        low=timing.low / per,
        high=timing.high / per,
    )


# ----------------------------------------------------------------------------------------------------- whole runs


@dataclass(frozen=True)
class Whole:
    """Seconds of a whole run in a new process.

    Attributes:
        name: What ran.
        imports: Importing the libraries, not part of ``run``.
        run: From the data to the draws; processor time of the process and of compilers it started.
        wall: The same on the wall clock.
        leapfrogs: Leapfrogs of all chains.
        again: A second run in the same process, after which little is left to compile; NaN if there was none.
    """

    name: str
    imports: float
    run: float
    wall: float
    leapfrogs: int
    again: float = float("nan")

    @property
    def microseconds(self) -> float:
        """Of processor time per leapfrog of a chain."""
        return 1e6 * self.run / self.leapfrogs


def processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def whole_ours(imports: float, hidden: int) -> dict[str, Any]:
    """A first run, one more in the same process, and one that is three times as long."""

    def run(transitions: int) -> tuple[float, float]:
        start, wall = processor_seconds(), time.perf_counter()
        args = data()
        net = model(hidden)
        kernel = HMC(STEP_SIZE, LEAPFROGS, adapt_step_size=False, adapt_mass=None, compile=True)
        init = Potential(net, args).start().repeat(CHAINS, 1)
        options = {"warmup_steps": 0, "thinning": 1, "num_chains": CHAINS, "init": init, "seed": 0, "progress": False}
        kernel.run(net, args, num_samples=transitions, **options)
        return processor_seconds() - start, time.perf_counter() - wall

    first, short, long = run(TRANSITIONS), run(TRANSITIONS), run(3 * TRANSITIONS)
    return {"imports": imports, "run": first[0], "wall": first[1], "again": short[0], "long": long[0]}


NUMPYRO = """
import json, os, sys, time
def processor():
    t = os.times(); return t.user + t.system + t.children_user + t.children_system
begin = processor()
import jax, numpy, numpyro, jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.infer import HMC, MCMC
imports = processor() - begin
hidden, noise, step, leapfrogs, chains, transitions, method = json.loads(sys.argv[1])
x, y = (numpy.asarray(a, dtype=numpy.float32) for a in json.load(sys.stdin))
def model(x, y):
    w1 = numpyro.sample("w1", dist.Normal(0, 1).expand([1, hidden]).to_event(2))
    b1 = numpyro.sample("b1", dist.Normal(0, 1).expand([hidden]).to_event(1))
    w2 = numpyro.sample("w2", dist.Normal(0, 1).expand([hidden, 1]).to_event(2))
    b2 = numpyro.sample("b2", dist.Normal(0, 1).expand([1]).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(jnp.tanh(x @ w1 + b1) @ w2 + b2, noise).to_event(1), obs=y)
def run(n):
    start, wall = processor(), time.perf_counter()
    kernel = HMC(model, step_size=step, trajectory_length=None, num_steps=leapfrogs,
                 adapt_step_size=False, adapt_mass_matrix=False)
    mcmc = MCMC(kernel, num_warmup=0, num_samples=n, num_chains=chains, chain_method=method, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(0), x, y)
    jax.block_until_ready(mcmc.get_samples())
    return processor() - start, time.perf_counter() - wall
first = run(transitions)
short, long = run(transitions), run(3 * transitions)
print(json.dumps({"imports": imports, "run": first[0], "wall": first[1], "again": short[0], "long": long[0],
                  "versions": f"numpyro {numpyro.__version__}, jax {jax.__version__}"}))
"""


def whole_runs(python: str | None) -> tuple[list[Whole], str]:
    """Ours in two processes, of which the first has nothing on disk; NumPyro's, which keeps nothing, if it is there."""
    rows, versions = [], "NumPyro not installed"
    with tempfile.TemporaryDirectory() as cache:
        for name in ("pyrobnn, a new model", "pyrobnn, the same in a new process"):
            command = [sys.executable, "-m", "benchmarks.hmc", "--whole", str(HIDDEN)]
            rows += _rows(name, _in_new_process(command, PYROBNN_CACHE=cache))
    for method in ("vectorized", "sequential"):
        settings = json.dumps([HIDDEN, NOISE, STEP_SIZE, LEAPFROGS, CHAINS, TRANSITIONS, method])
        command = [python or sys.executable, "-c", NUMPYRO, settings]
        flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        found = _in_new_process(command, text=json.dumps([part.tolist() for part in data()]), **flags)
        if found is None:
            print("NumPyro's rows are left out: it is not installed (pip install numpyro, or --numpyro-python).")
            break
        versions = found.pop("versions")
        rows += _rows(f"NumPyro, {method}", found)
    return rows, versions


def _rows(name: str, found: dict[str, Any]) -> list[Whole]:
    """A whole run, and what a thousand more transitions take."""
    total, running = CHAINS * TRANSITIONS * LEAPFROGS, (found.pop("long") - found["again"]) / 2
    more = Whole(f"{name}, running (per 1,000 transitions)", 0.0, running, float("nan"), total)
    return [Whole(name=name, leapfrogs=total, **found), more]


def _in_new_process(command: list[str], text: str | None = None, **variables: str) -> Any:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", **variables}
    done = subprocess.run(command, input=text, env=environ, capture_output=True, text=True)
    if done.returncode:
        if "No module named 'numpyro'" in done.stderr or "No module named 'jax'" in done.stderr:
            return None
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def whole_table(rows: list[Whole]) -> str:
    lines = [
        f"### {CHAINS} chains x {TRANSITIONS} transitions of {LEAPFROGS} leapfrogs, whole runs, one core",
        "",
        "| run | seconds of processor | us per leapfrog | wall | second run | imports before |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        figures = [f"**{row.run:.2f}**", f"{row.microseconds:.1f}"]
        figures += [f"{seconds:.2f}" for seconds in (row.wall, row.again, row.imports)]
        lines.append(f"| {row.name} | {' | '.join(figures)} |".replace("nan", "-"))
    return "\n".join(lines)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps this process and those it starts on one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="pairs of blocks (default %(default)s)")
    parser.add_argument("--block-seconds", type=float, default=0.25, help="length of a block (default %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="wall, or cpu for a busy machine")
    parser.add_argument("--rows", nargs="+", choices=RUNNING, default=list(RUNNING), help="default: all")
    parser.add_argument("--no-whole", action="store_true", help="leave out the whole runs")
    parser.add_argument("--numpyro-python", metavar="PATH", help="an interpreter that has NumPyro")
    parser.add_argument("--json", metavar="PATH", help="write everything to a JSON file too")
    parser.add_argument("--whole", type=int, metavar="HIDDEN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    if options.whole:
        print(json.dumps(whole_ours(processor_seconds(), options.whole)))
        return
    with one_core():
        header = environment(1, options.clock)
        print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
        timing = options.rounds, options.block_seconds, options.clock
        title = "A leapfrog, 1-50-1 network, as a multiple of one value and gradient in plain torch"
        timings = [measure(name, RUNNING[name](), *timing) for name in options.rows]
        print(f"\n{markdown_table(title, timings)}\n", flush=True)
        whole: list[Whole] = []
        if not options.no_whole:
            whole, versions = whole_runs(options.numpyro_python)
            print(f"- {versions}\n\n{whole_table(whole)}", flush=True)
    if options.json:
        write_json(options.json, header, {title: timings}, whole=[asdict(row) for row in whole])


if __name__ == "__main__":
    main()
