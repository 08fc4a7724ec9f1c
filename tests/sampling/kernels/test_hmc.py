"""HMC: the suite, known posteriors, exactness at coarse steps, lengths of trajectories, and what it refuses.

Tolerances are z-scores with Monte Carlo errors from effective sample sizes over chains.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.core.shared_library import shared_library
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling.hmc.leapfrog import Leapfrogs
from pyrobnn.sampling.hmc.native import compiled
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.kernels.base import ChainResult
from pyrobnn.sampling.kernels.hmc import HMC
from pyrobnn.sampling.kernels.nuts import NUTS
from tests.conformance.full_batch_suite import (
    MEAN,
    FullBatchConformance,
    assert_moments,
    errors_of_mean,
    gaussian,
    run,
    z_of_chains,
)
from tests.conformance.monte_carlo import Z
from tests.core.test_shared_library import needs_gcc


class TestHMC(FullBatchConformance):
    def make_kernel(self) -> HMC:
        return HMC(trajectory_length=2.0, compile=False)

    def make_coarse(self) -> HMC:
        return HMC(0.4, num_leapfrog=3, adapt_step_size=False, adapt_mass=None, compile=False)


# -------------------------------------------------------------------------------------------------- known posteriors


@pytest.mark.statistical
@pytest.mark.parametrize("prior", [dist.HalfCauchy(1.0), dist.LogNormal(0.0, 1.0)], ids=["HalfCauchy", "LogNormal"])
def test_a_positive_scale_against_quadrature(prior: Any) -> None:
    y = torch.tensor([0.3, -1.2, 0.8, 2.0])

    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", prior)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    grid = torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)  # of the logarithm
    scale = grid.exp()
    log_density = prior.log_prob(scale) + dist.Normal(0.0, scale.unsqueeze(-1)).log_prob(y.double()).sum(-1) + grid
    weights = log_density.softmax(0)
    mean = (weights * grid).sum()
    variance = (weights * (grid - mean) ** 2).sum()
    result = run(HMC(compile=False), model, (y,), num_samples=1500, warmup_steps=200)
    assert_moments(result.draws.double(), mean.reshape(1), variance.reshape(1, 1))


@pytest.mark.statistical
def test_coarse_steps_are_corrected_exactly() -> None:
    # Without the correction this step size gives the first coordinate the variance 1 / (1 - 1.5 ** 2 / 4) = 2.3.
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    kernel = HMC(1.5, num_leapfrog=3, adapt_step_size=False, adapt_mass=None, compile=False)
    result = run(kernel, model, num_samples=3000, warmup_steps=20)
    assert 0.3 < float(result.stats["acceptance_rate"].mean()) < 0.9
    assert_moments(result.draws, torch.zeros(2), torch.eye(2))


@pytest.mark.statistical
def test_hmc_and_nuts_agree_on_the_functions_of_a_network() -> None:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 20).unsqueeze(-1)
    y = torch.sin(3 * x) + 0.3 * torch.randn_like(x)
    net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1))
    priors = [("2.weight", dist.Normal(0.0, 50**-0.5)), ("*", dist.Normal(0.0, 1.0))]
    model = SupervisedModel(net, pb.likelihoods.Normal(0.3), priors, num_data=20)
    potential = Potential(model, (x, y))
    points = torch.linspace(-1.5, 1.5, 7).unsqueeze(-1)

    def functions(result: ChainResult) -> Tensor:
        w = potential.constrain(result.draws)
        hidden = torch.tanh(points @ w["net.0.weight"].mT + w["net.0.bias"].unsqueeze(-2))
        return (hidden @ w["net.2.weight"].mT + w["net.2.bias"].unsqueeze(-2)).squeeze(-1)

    found = run(HMC(num_leapfrog=16, adapt_mass=None, compile=False), model, (x, y), num_samples=300, warmup_steps=100)
    nuts = NUTS(adapt_mass=None, max_tree_depth=6, compile=False)
    other = run(nuts, model, (x, y), num_samples=200, warmup_steps=100)
    by_hmc, by_nuts = functions(found), functions(other)
    for power in (1, 2):
        a, b = ((f - by_hmc.mean((0, 1))) ** power for f in (by_hmc, by_nuts))
        assert (z_of_chains(a, b) < Z).all(), power
        error = (errors_of_mean(a) ** 2 + errors_of_mean(b) ** 2).sqrt()
        assert (error < 0.3 * (by_hmc.std((0, 1)) ** power)).all(), "too few draws to tell"


# ----------------------------------------------------------------------------------------------------- trajectories


def test_a_long_trajectory_has_the_length_asked_for() -> None:
    kernel = HMC(0.05, trajectory_length=0.5, adapt_step_size=False, adapt_mass=None, jitter=0.2)
    result = run(kernel, gaussian, num_samples=50)
    assert (result.stats["n_steps"] == 10).all()
    sizes = result.stats["step_size"]
    assert float(sizes.min()) >= 0.04 and float(sizes.max()) <= 0.06 and len(sizes.unique()) == sizes.numel()
    fixed = run(dataclasses.replace(kernel, jitter=0.0, trajectory_length=None, num_leapfrog=3), gaussian)
    assert (fixed.stats["n_steps"] == 3).all()
    torch.testing.assert_close(fixed.stats["step_size"], torch.full((4, 100), 0.05))


def test_a_step_size_that_diverges_is_told_and_moves_nothing() -> None:
    kernel = HMC(100.0, num_leapfrog=5, adapt_step_size=False, adapt_mass=None)
    init = torch.zeros(2, 2) + MEAN
    with pytest.warns(UserWarning, match=r"HMC: chains 0, 1 did not move.*smaller step_size"):
        result = run(kernel, gaussian, num_chains=2, init=init, num_samples=20)
    assert result.stats["diverging"].all()
    assert torch.equal(result.draws, init.unsqueeze(1).expand(-1, 20, -1))


# ----------------------------------------------------------------------------------------------------- compilation

_WHOLE_RUN = """
import sys
import torch
import pyro.distributions as dist
import pyrobnn as pb

net = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
x = torch.linspace(-1, 1, 20).unsqueeze(-1)
model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=20)
kernel = pb.sampling.HMC(num_leapfrog=10, compile=True)
chains = pb.sample(model, (x, x.sin()), kernel=kernel, num_samples=20, warmup_steps=20, num_chains=2, progress=False)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def small_network() -> tuple[SupervisedModel, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
    model = SupervisedModel(net, pb.likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=20)
    return model.double(), (x, torch.sin(3 * x))


@needs_gcc
def test_a_compiled_run_imports_no_compiler_of_torchs() -> None:
    done = subprocess.run([sys.executable, "-c", _WHOLE_RUN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@needs_gcc
def test_a_run_with_adaptation_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []
    monkeypatch.setattr(compiled, "shared_library", lambda source: sources.append(source) or shared_library(source))
    result = run(HMC(compile=True), *small_network(), warmup_steps=60, num_samples=20)
    assert len(sources) == 1 and result.draws.isfinite().all()


def test_no_leapfrog_runs_with_gradients_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.compile`` would compile a second time for those."""
    modes: set[bool] = set()
    call = Leapfrogs.__call__

    def noted(self: Leapfrogs, *args: Any) -> Any:
        modes.add(torch.is_grad_enabled())
        return call(self, *args)

    monkeypatch.setattr(Leapfrogs, "__call__", noted)
    run(HMC(compile=False, num_leapfrog=3), gaussian, warmup_steps=60, num_samples=5)
    assert modes == {False}


@needs_gcc
def test_compiled_chains_are_those_of_torch() -> None:
    kernel = HMC(0.05, num_leapfrog=5, adapt_step_size=False, adapt_mass=None)
    model, args = small_network()
    chains = [
        run(dataclasses.replace(kernel, compile=compile), model, args, num_samples=30) for compile in (True, False)
    ]
    torch.testing.assert_close(chains[0].draws, chains[1].draws, rtol=1e-9, atol=1e-9)
    for name, figures in chains[0].stats.items():
        torch.testing.assert_close(figures, chains[1].stats[name], rtol=1e-7, atol=1e-7)
    assert float(chains[0].stats["acceptance_rate"].min()) < 1.0  # some may be refused


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_leapfrog": 3, "trajectory_length": 1.0}, TypeError, "trajectory_length: .* together with num_leapfrog"),
        ({"num_leapfrog": 0}, ValueError, "num_leapfrog: expected a positive int"),
        ({"step_size": -1.0}, ValueError, "step_size: expected a positive number"),
        ({"trajectory_length": 0.0}, ValueError, "trajectory_length: expected a positive number"),
        ({"adapt_step_size": False}, ValueError, "step_size: it is None and does not adapt"),
        ({"adapt_mass": "dense"}, ValueError, "adapt_mass: expected 'diagonal' or None, got 'dense'"),
        ({"target_accept": 1.0}, ValueError, "target_accept: expected a probability"),
        ({"jitter": 1.0}, ValueError, "jitter: expected a number from 0 to below 1"),
        ({"compile": "yes"}, ValueError, "compile: expected True, False or 'auto', got 'yes'"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HMC(**options)
