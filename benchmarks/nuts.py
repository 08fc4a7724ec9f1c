"""The cost of a gradient of NUTS beside Pyro's on the same potential, and how much a gradient is worth.

Cost: the 1-50-1 network of :mod:`benchmarks.hmc`, as a multiple of one plain torch value-and-gradient. Step size 0.001
and trees of depth 6 without adaptation, so that samplers do the same work; in one row the step size is such that trees
have different depths. Only gradients that a chain's own tree needed are counted, per chain; the second table says how
many were computed beside these while chains waited, and how many would be if all waited for the deepest tree.

Worth: effective draws per gradient of complete runs with adaptation, of our NUTS and Pyro's on the flat potential.

    python -m benchmarks.nuts --rounds 15
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.hmc import STEP_SIZE, Count, data, measure, model, one_core
from benchmarks.timing import CLOCKS, environment, markdown_table, write_json
from pyrobnn.model.likelihoods import Normal
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling import NUTS, PyroKernel
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.kernels.nuts import Chains
from pyrobnn.sampling.kernels.pyro_kernel import flat_potential

TREE_DEPTH = 6
UNEQUAL_STEP = 4e-3  # at which U-turns end trees of the network at different depths

# ---------------------------------------------------------------------------------------------------------- cost


def chains(num_chains: int, compile: bool, step_size: float = STEP_SIZE, depth: int = TREE_DEPTH) -> Chains:
    potential = Potential(model(), data())
    kernel = NUTS(step_size, adapt_step_size=False, adapt_mass=None, max_tree_depth=depth, compile=compile)
    return Chains(kernel, potential, potential.start().repeat(num_chains, 1), 0, 10**6, seed=0)


def ours(num_chains: int, compile: bool, **options: Any) -> Count:
    running = chains(num_chains, compile, **options)
    trees = running.trees

    def leaf() -> int:
        with torch.no_grad():
            trees.begin(~trees.active)
            trees.grow()
        return num_chains

    return leaf


def pyro_kernel(kernel: Any, initial: dict[str, Tensor] | None, *args: Any) -> Count:
    """A kernel of Pyro's; its potential is called once for each leapfrog."""
    if initial is not None:
        kernel.initial_params = initial
    kernel.setup(0, *args)
    state, calls = kernel.initial_params, 0
    potential_fn = kernel.potential_fn

    def counted(values: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return potential_fn(values)

    kernel.potential_fn = counted

    def transition() -> int:
        nonlocal state, calls
        calls = 0
        state = kernel.sample(state)
        return calls

    return transition


def pyro_nuts(**options: Any) -> Any:
    fixed = {"step_size": STEP_SIZE, "adapt_step_size": False, "adapt_mass_matrix": False}
    return pyro.infer.NUTS(max_tree_depth=TREE_DEPTH, **fixed, **options)


def pyro_as_written() -> Count:
    return pyro_kernel(pyro_nuts(model=model()), None, *data())


def pyro_flat() -> Count:
    potential = Potential(model(), data())
    start = potential.start()
    return pyro_kernel(pyro_nuts(potential_fn=flat_potential(potential, start)), {"flat": start})


UNEQUAL: dict[str, Any] = {"step_size": UNEQUAL_STEP, "depth": 10}
RUNNING: dict[str, Callable[[], Count]] = {
    "Pyro NUTS as written": pyro_as_written,
    "Pyro NUTS on the flat potential": pyro_flat,
    "NUTS eager, 1 chain": lambda: ours(1, False),
    "NUTS eager, 4 chains, per chain": lambda: ours(4, False),
    "NUTS compiled, 1 chain": lambda: ours(1, True),
    "NUTS compiled, 4 chains, per chain": lambda: ours(4, True),
    "NUTS compiled, 4 chains of unequal trees, per chain": lambda: ours(4, True, **UNEQUAL),
    "NUTS compiled, 32 chains, per chain": lambda: ours(32, True),
    "NUTS compiled, 32 chains of unequal trees, per chain": lambda: ours(32, True, **UNEQUAL),
}


def waiting(num_chains: int, transitions: int = 100) -> str:
    """A row of the table of waste: gradients computed for each that was of use."""
    running = chains(num_chains, compile=False, **UNEQUAL)
    with torch.no_grad():
        running.run(20, 1, lambda count: None)
        before = running.trees.num_rounds
        steps = running.run(transitions, 1, lambda count: None).stats["n_steps"].double()
    used = float(steps.sum())
    computed = num_chains * (running.trees.num_rounds - before) / used
    together = num_chains * float(steps.amax(0).sum()) / used
    return (
        f"| {num_chains} | {float(steps.mean()):.0f} | {float(steps.std()):.0f} | **{computed:.2f}** | {together:.2f} |"
    )


# ---------------------------------------------------------------------------------------------------------- worth


@dataclass(frozen=True)
class Problem:
    """What is sampled.

    Attributes:
        name: In the table.
        model, args: The model and its data.
        functions: From draws ``[C, S, d]`` to what effective sample sizes are of ``[C, S, K]``.
        transitions: Of warmup, and as many draws.
    """

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    functions: Callable[[Tensor], Tensor]
    transitions: int


def gaussian() -> Problem:
    size = 50
    places = torch.arange(size, dtype=torch.float64)
    correlation = 0.8 ** (places - places.unsqueeze(-1)).abs()
    scales = 3.0 ** torch.linspace(-1.0, 1.0, size, dtype=torch.float64)
    factor = torch.linalg.cholesky(correlation * scales * scales.unsqueeze(-1))
    normal = dist.MultivariateNormal(torch.zeros(size, dtype=torch.float64), scale_tril=factor)
    return Problem("Gaussian, 50 coordinates", lambda: pyro.sample("z", normal), (), lambda draws: draws, 300)


def network() -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2, 2, 20).unsqueeze(-1)
    y = torch.sin(2 * x) + 0.5 * torch.randn(20, 1, generator=generator)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    likelihood = SupervisedModel(net, Normal(0.5), dist.Normal(0.0, 1.0), num_data=20)
    potential = Potential(likelihood, (x, y))
    points = torch.linspace(-2.5, 2.5, 9).unsqueeze(-1)

    def functions(draws: Tensor) -> Tensor:
        w = potential.constrain(draws)
        hidden = torch.tanh(points @ w["net.0.weight"].mT + w["net.0.bias"].unsqueeze(-2))
        return (hidden @ w["net.2.weight"].mT + w["net.2.bias"].unsqueeze(-2)).squeeze(-1)

    return Problem("1-8-1 network, its functions", likelihood, (x, y), functions, 150)


def pyros() -> PyroKernel:
    return PyroKernel(lambda potential: pyro.infer.NUTS(potential_fn=potential, step_size=0.1))


def worth(problem: Problem, name: str, kernel: NUTS | PyroKernel, seeds: range) -> str:
    """A row: smallest and median effective draws of 4 chains per 1,000 gradients after warmup, over seeds."""
    rows: list[tuple[float, float, float]] = []
    start = Potential(problem.model, problem.args).start()
    for seed in seeds:
        noise = torch.randn(4, len(start), generator=torch.Generator().manual_seed(seed), dtype=start.dtype)
        count = problem.transitions
        options = {"num_samples": count, "warmup_steps": count, "thinning": 1, "num_chains": 4, "progress": False}
        result = kernel.run(problem.model, problem.args, init=start + 0.3 * noise, seed=seed, **options)
        found = problem.functions(result.draws).double()
        gradients = float(result.stats["n_steps"].sum())
        sizes = [effective_sample_size(values, 0, 1) for values in (found, (found - found.mean((0, 1))) ** 2)]
        rows.append((float(sizes[0].min()), float(torch.cat(sizes).median()), gradients / (4 * count)))
    each = torch.tensor(rows).double()
    per = 1000.0 * each[:, :2] / (each[:, 2:] * 4 * problem.transitions)
    figures = " | ".join(
        f"{float(column.mean()):.1f} ± {float(column.std()) / len(per) ** 0.5:.1f}" for column in per.T
    )
    return f"| {problem.name} | {name} | {figures} | {float(each[:, 2].mean()):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="pairs of blocks (default %(default)s)")
    parser.add_argument("--block-seconds", type=float, default=0.25, help="length of a block (default %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="wall, or cpu for a busy machine")
    parser.add_argument("--rows", nargs="+", choices=RUNNING, default=list(RUNNING), help="default: all")
    parser.add_argument("--no-worth", action="store_true", help="leave out effective sample sizes")
    parser.add_argument("--seeds", type=int, default=3, help="runs for each of these (default %(default)s)")
    parser.add_argument("--json", metavar="PATH", help="write the timings to a JSON file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    with one_core():
        header = environment(1, options.clock)
        print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
        timing = options.rounds, options.block_seconds, options.clock
        title = "A gradient of use, 1-50-1 network, as a multiple of one value and gradient in plain torch"
        timings = [measure(name, RUNNING[name](), *timing) for name in options.rows]
        print(f"\n{markdown_table(title, timings)}\n", flush=True)
        print("| chains | leapfrogs a tree | their deviation | computed for each of use | if all waited |")
        print("|---:|---:|---:|---:|---:|\n" + "\n".join(waiting(count) for count in (4, 32)), flush=True)
        if not options.no_worth:
            print("\n| problem | sampler | least effective draws per 1,000 gradients | median | leapfrogs a tree |")
            print("|---|---|---:|---:|---:|")
            for problem in (gaussian(), network()):
                for name, kernel in (("NUTS", NUTS(compile=False)), ("Pyro's NUTS", pyros())):
                    print(worth(problem, name, kernel, range(options.seeds)), flush=True)
    if options.json:
        write_json(options.json, header, {title: timings})


if __name__ == "__main__":
    main()
