"""HMC: known posteriors, exactness at coarse steps, statistics, chains, and what it refuses.

Tolerances are z-scores with Monte Carlo errors from effective sample sizes over chains.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.parts import NonFiniteLossError
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.kernels.base import ChainResult
from pyrobnn.sampling.kernels.hmc import HMC
from pyrobnn.sampling.kernels.nuts import NUTS
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.monte_carlo import Z

MEAN = torch.tensor([1.0, -2.0])
COVARIANCE = torch.tensor([[1.0, 0.9 * 3.0], [0.9 * 3.0, 9.0]])


def gaussian() -> None:
    pyro.sample("z", dist.MultivariateNormal(MEAN, COVARIANCE))


def run(kernel: Any, model: Callable[..., Any], args: tuple[Any, ...] = (), **options: Any) -> ChainResult:
    chains = options.setdefault("num_chains", 4)
    settings = {"num_samples": 100, "warmup_steps": 0, "thinning": 1, "seed": 0, "progress": False} | options
    if "init" not in settings:
        potential = Potential(model, args)
        generator = torch.Generator().manual_seed(1)
        start = potential.start()
        noise = torch.randn(chains, len(start), generator=generator, dtype=start.dtype)
        settings["init"] = start + noise
    return kernel.run(model, args, **settings)


def errors_of_mean(draws: Tensor) -> Tensor:
    """Monte Carlo standard errors of the mean of draws ``[C, S, ...]``."""
    size = effective_sample_size(draws, 0, 1).clamp(max=draws[..., 0].numel())
    return draws.flatten(0, 1).std(0) / size.sqrt()


def z_scores(draws: Tensor, known: Tensor) -> Tensor:
    return (draws.flatten(0, 1).mean(0) - known).abs() / errors_of_mean(draws)


def assert_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Means within 0.1 sd and variances within 10 %, and both within 5 Monte Carlo errors."""
    variance = covariance.diagonal()
    flat = draws.flatten(0, 1)
    assert ((flat.mean(0) - mean).abs() < 0.1 * variance.sqrt()).all()
    assert ((flat.var(0) / variance - 1.0).abs() < 0.1).all(), flat.var(0) / variance
    assert (z_scores(draws, mean) < Z).all()
    centered = draws - mean
    products = centered.unsqueeze(-1) * centered.unsqueeze(-2)
    assert (z_scores(products.flatten(2), covariance.flatten()) < Z).all()


# -------------------------------------------------------------------------------------------------- known posteriors


@pytest.mark.statistical
def test_a_correlated_gaussian() -> None:
    result = run(HMC(trajectory_length=2.0, compile=False), gaussian, num_samples=1500, warmup_steps=200)
    assert_moments(result.draws, MEAN, COVARIANCE)


@pytest.mark.statistical
def test_conjugate_regression() -> None:
    case = ConjugateRegression()
    result = run(HMC(compile=False), case.model(), (case.x, case.y), num_samples=1500, warmup_steps=200)
    assert_moments(result.draws, case.mean, torch.linalg.inv(case.precision))


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
def test_several_chains_are_one_chain_in_law() -> None:
    case = ConjugateRegression()
    kernel = HMC(0.1, num_leapfrog=4, adapt_step_size=False, adapt_mass=None, compile=False)
    many, one = (
        run(kernel, case.model(), (case.x, case.y), num_samples=count, num_chains=chains, warmup_steps=200).draws
        for chains, count in ((4, 400), (1, 1600))
    )
    for power in (1, 2):
        a, b = ((draws - case.mean) ** power for draws in (many, one))
        error = (errors_of_mean(a) ** 2 + errors_of_mean(b) ** 2).sqrt()
        assert ((a.flatten(0, 1).mean(0) - b.flatten(0, 1).mean(0)).abs() < Z * error).all()


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
    # NUTS takes over the step size and a start; with a warmup of its own the test would take a minute.
    nuts = NUTS(float(found.stats["step_size"].mean()), adapt_step_size=False, adapt_mass=None, max_tree_depth=5)
    other = run(nuts, model, (x, y), num_samples=200, warmup_steps=20, num_chains=1, init=found.draws[:1, -1])
    ours, pyros = functions(found), functions(other)
    for power in (1, 2):
        a, b = ((f - ours.mean((0, 1))) ** power for f in (ours, pyros))
        error = (errors_of_mean(a) ** 2 + errors_of_mean(b) ** 2).sqrt()
        z = (a.mean((0, 1)) - b.mean((0, 1))).abs() / error
        assert (z < Z).all(), (power, z)
        assert (error < 0.3 * (ours.std((0, 1)) ** power)).all(), "too few draws to tell"


# ------------------------------------------------------------------------------------------------------- statistics


def test_energies_are_potential_and_kinetic() -> None:
    case = ConjugateRegression()
    args = (case.x, case.y)
    potential = Potential(case.model(), args)
    result = run(HMC(), case.model(), args, num_samples=400, warmup_steps=200)
    stats = result.stats
    assert all(value.shape == (4, 400) for value in stats.values())
    torch.testing.assert_close(stats["lp"][1, 7], -potential(result.draws[1, 7]))
    kinetic = stats["energy"] + stats["lp"]
    assert (kinetic > 0).all()
    # Each kinetic energy of an accepted or kept state is chi-squared with 4 degrees of freedom over 2: mean 2.
    assert (z_scores(kinetic.unsqueeze(-1), torch.tensor([2.0])) < Z).all()
    bayesian_fraction = stats["energy"].diff(dim=1).square().sum(1) / (
        (stats["energy"] - stats["energy"].mean(1, keepdim=True)).square().sum(1)
    )
    assert (bayesian_fraction > 0.5).all()  # 1 or more for a Gaussian; below 0.3 is bad
    torch.testing.assert_close(stats["acceptance_rate"], (-stats["energy_error"]).exp().clamp(max=1.0))
    assert abs(float(stats["acceptance_rate"].mean()) - 0.8) < 0.1
    assert not stats["diverging"].any()


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


@pytest.mark.parametrize("beyond", [torch.nan, torch.inf, -torch.inf])
def test_a_potential_that_is_not_finite_somewhere_is_never_entered(beyond: float) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(z > 0.5, torch.full_like(z, beyond), torch.zeros_like(z)))

    kernel = HMC(0.4, num_leapfrog=3, adapt_step_size=False, adapt_mass=None)
    # Pyro's validation would refuse a factor of NaN when the model is looked at.
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="diverged"):
        result = run(kernel, model, num_chains=2, init=torch.zeros(2, 1), num_samples=200)
    assert (result.draws <= 0.5).all()
    assert result.stats["diverging"].any() and not result.stats["diverging"].all()
    assert result.stats["lp"].isfinite().all() and result.stats["energy"].isfinite().all()


def test_burn_in_finds_scales_and_step_size() -> None:
    scales = torch.tensor([0.01, 1.0, 20.0])

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, scales).to_event(1))

    kernel = HMC(trajectory_length=math.pi / 2)
    potential = Potential(model)
    init = scales * torch.randn(4, 3)
    result = run(kernel, model, warmup_steps=400, num_samples=200, init=init)
    ratio = result.draws.flatten(0, 1).std(0) / scales
    assert potential.num_latents == 3
    assert ((ratio - 1).abs() < 0.15).all(), ratio
    assert float(result.stats["n_steps"].float().mean()) < 6  # without the scales it would take hundreds
    assert float(result.stats["acceptance_rate"].mean()) == pytest.approx(0.8, abs=0.12)


# ----------------------------------------------------------------------------------------------- runs and their seeds


def test_thinning_keeps_every_third_draw() -> None:
    kernel = HMC(0.3, num_leapfrog=3, adapt_step_size=False, adapt_mass=None)
    init = torch.zeros(2, 2) + MEAN
    every = run(kernel, gaussian, num_chains=2, init=init, num_samples=30)
    third = run(kernel, gaussian, num_chains=2, init=init, num_samples=10, thinning=3)
    assert torch.equal(third.draws, every.draws[:, 2::3])
    assert torch.equal(third.stats["lp"], every.stats["lp"][:, 2::3])


def test_the_seed_decides_and_the_global_state_is_left_alone() -> None:
    kernel, init = HMC(0.3, num_leapfrog=3), torch.zeros(2, 2)
    state = torch.get_rng_state()
    first, again, other = (
        run(kernel, gaussian, num_chains=2, init=init, num_samples=10, warmup_steps=30, seed=seed).draws
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(init, torch.zeros(2, 2))


def test_sample_hands_over_draws_of_sites_and_statistics() -> None:
    case = ConjugateRegression()
    guide = pb.sample(
        case.model(),
        (case.x, case.y),
        kernel=HMC(),
        num_samples=60,
        warmup_steps=40,
        num_chains=3,
        seed=0,
        progress=False,
    )
    draws = guide.sample(20)
    assert draws["net.weight"].shape == (20, 1, 3)
    assert draws["net.bias"].shape == (20, 1)
    assert (draws["net.bias"] - case.mean[-1]).abs().max() < 6 * case.precision.diagonal()[-1].rsqrt() * 2


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


def test_a_start_that_is_not_finite_is_refused() -> None:
    case = ConjugateRegression()
    init = torch.zeros(2, 4, dtype=torch.float64)
    init[1, 3] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r"chain 1 starts: .*'net.bias'"):
        run(HMC(), case.model(), (case.x, case.y), num_chains=2, init=init)
