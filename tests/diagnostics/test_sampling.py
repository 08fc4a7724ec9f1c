"""Diagnostics of Markov chains, against chains whose behavior is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyrobnn as pb
from pyrobnn.diagnostics import (
    energy_bfmi,
    function_space_diagnostics,
    kinetic_temperature,
    log_density_diagnostics,
    step_size_agreement,
    to_arviz,
)
from pyrobnn.guides import MAP, Chains
from pyrobnn.sampling import HMC, SGHMC, SGLD
from tests.diagnostics.models import Conjugate

pytestmark = pytest.mark.arviz

PROBLEM = Conjugate(30, 2)


def exact_chains(
    num_chains: int = 4, num_samples: int = 125, seed: int = 0, width: float = 1.0, **options: Any
) -> Chains:
    """Independent draws of the exact posterior, their deviations times ``width``."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_samples, num_chains, 2, generator=generator, dtype=torch.float64)
    draws = PROBLEM.mean + width * noise * PROBLEM.precision.rsqrt()
    return Chains(PROBLEM.model, num_chains, num_samples, [draws], **options)


def moved(chains: Chains, shift: Tensor | float) -> Chains:
    """The same with the first chain elsewhere."""
    draws = chains.blocks[0].detach().clone()
    draws[:, 0] += shift
    return Chains(PROBLEM.model, chains.num_chains, chains.num_samples, [draws])


# -------------------------------------------------------------------------------------------------- log density


def test_log_density_by_hand() -> None:
    chains = exact_chains(2, 4)
    found = log_density_diagnostics(PROBLEM.model, chains, PROBLEM.x, PROBLEM.y, batch_size=7)
    for chain in range(2):
        for draw in range(4):
            w = chains.blocks[0].detach()[draw, chain]
            likelihood = torch.distributions.Normal(PROBLEM.x @ w, 0.5).log_prob(PROBLEM.y[:, 0]).sum()
            prior = torch.distributions.Normal(0.0, 1.0).log_prob(w).sum()
            torch.testing.assert_close(found.values[chain, draw], likelihood + prior)


def test_chains_that_agree_and_one_that_does_not() -> None:
    good = exact_chains()
    found = log_density_diagnostics(PROBLEM.model, good, PROBLEM.x, PROBLEM.y)
    assert found.rhat is not None
    assert found.rhat < 1.03
    assert 350 < found.ess_bulk < 700  # of 500 independent draws
    bad = log_density_diagnostics(PROBLEM.model, moved(good, 3.0 * PROBLEM.precision.rsqrt()), PROBLEM.x, PROBLEM.y)
    assert bad.rhat is not None
    assert bad.rhat > 1.2
    assert "R-hat" in str(bad)
    single = log_density_diagnostics(PROBLEM.model, exact_chains(1), PROBLEM.x, PROBLEM.y, num_samples=50)
    assert single.rhat is None
    assert single.values.shape == (1, 50)


def test_function_space_diagnostics_take_chains_as_chains() -> None:
    good = exact_chains()
    found = function_space_diagnostics(PROBLEM.model, good, PROBLEM.x[:3])
    assert (found.num_chains, found.num_samples) == (4, 125)
    assert found.max_rhat is not None
    assert found.max_rhat < 1.03
    worst = function_space_diagnostics(PROBLEM.model, moved(good, 3.0 * PROBLEM.precision.rsqrt()), PROBLEM.x[:3])
    assert worst.max_rhat is not None
    assert worst.max_rhat > 1.2


# ----------------------------------------------------------------------------------------------------- energies


def test_bfmi_of_independent_and_of_crawling_energies() -> None:
    """``E[(e_t - e_{t-1})²] / Var e``: 2 for independent energies, 2 (1 - ρ) for an AR(1); four standard errors."""
    noise = np.random.default_rng(0).normal(size=(2, 4000))
    crawling = noise.copy()
    for t in range(1, 4000):
        crawling[:, t] = 0.95 * crawling[:, t - 1] + math.sqrt(1 - 0.95**2) * noise[:, t]
    for values, expected in ((noise, 2.0), (crawling, 0.1)):
        stats = {"energy": torch.from_numpy(values)}
        found = energy_bfmi(exact_chains(2, 4000, stats=stats))
        assert found.shape == (2,)
        assert float((found / expected - 1).abs().max()) < 0.25  # 200 independent stretches: sd 2 sqrt(2 / 200) / 2


def test_hmc_has_energies_that_move() -> None:
    data, kernel = (PROBLEM.x, PROBLEM.y), HMC(compile=False)
    chains = pb.sample(
        PROBLEM.model, data, kernel=kernel, num_samples=60, warmup_steps=60, num_chains=2, seed=0, progress=False
    )
    assert float(energy_bfmi(chains).min()) > 0.3


# ------------------------------------------------------------------------------------------------ step sizes


@pytest.mark.statistical
def test_velocities_are_as_warm_as_the_sampler_says_unless_the_step_is_too_large() -> None:
    """SGHMC with full gradients at steps of 1 % and 190 % of 1 / Λ, T = 0.5, in 2 x 600 draws."""
    data, precision = (PROBLEM.x, PROBLEM.y), float(PROBLEM.precision.max())
    found = []
    for share in (0.01, 1.9):
        kernel = SGHMC(share / precision, temperature=0.5, friction=0.5)
        chains = pb.sample(
            PROBLEM.model, data, kernel=kernel, num_samples=600, warmup_steps=50, num_chains=2, seed=0, progress=False
        )
        found.append(kinetic_temperature(chains, 0.5))
    assert abs(found[0].mean - 0.5) < 5 * found[0].error + 0.01
    assert found[0].agrees()
    assert found[1].bias > 0.2
    assert not found[1].agrees()
    assert "expected 0.5" in str(found[1])


def test_temperature_by_hand() -> None:
    values = 1.2 + 0.1 * torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    found = kinetic_temperature(exact_chains(2, 500, stats={"kinetic_temperature": values}))
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-5)
    assert found.error == pytest.approx(0.1 / math.sqrt(1000), rel=0.3)
    assert found.bias == pytest.approx(found.mean - 1.0, rel=1e-5)
    assert not found.agrees()
    assert found.agrees(0.25)


@pytest.mark.statistical
def test_two_runs_agree_unless_one_is_wider_or_elsewhere() -> None:
    """2 x 200 independent draws each: the error of a mean is sqrt(2 / 400) sd, z-scores below 5."""
    x, first, second = PROBLEM.x[:2], exact_chains(2, 200, seed=1), exact_chains(2, 200, seed=2)
    found = step_size_agreement(PROBLEM.model, first, second, x)
    assert found.difference.shape == (2, 1)
    assert found.max_z < 5
    assert float(found.error.mean()) == pytest.approx(math.sqrt(2 / 400), rel=0.25)
    assert found.agrees(0.15)
    wide = step_size_agreement(PROBLEM.model, exact_chains(2, 200, seed=1, width=1.5), second, x)
    torch.testing.assert_close(wide.spread, torch.full((2, 1), 1.5), rtol=0.2, atol=0.0)
    assert not wide.agrees()
    draws = first.blocks[0].detach() + 0.5 * PROBLEM.precision.rsqrt()
    apart = step_size_agreement(PROBLEM.model, Chains(PROBLEM.model, 2, 200, [draws]), second, x)
    assert apart.max_z > 5
    assert not apart.agrees()
    assert "spreads by a factor of" in str(apart)


@pytest.mark.statistical
def test_sgld_with_a_large_step_is_found_out() -> None:
    """ε Λ = 2 spreads draws by 1 / sqrt(1 - εΛ / 4) = sqrt(2), against 1.07 for ε Λ = 0.5; 2 x 500 draws."""
    data, precision = (PROBLEM.x, PROBLEM.y), float(PROBLEM.precision.mean())
    runs = [
        pb.sample(PROBLEM.model, data, kernel=SGLD(share / precision), num_samples=500, thinning=thinning,
                  warmup_steps=30, num_chains=2, seed=seed, progress=False)
        for seed, (share, thinning) in enumerate(((2.0, 1), (0.5, 2)))
    ]  # fmt: skip
    found = step_size_agreement(PROBLEM.model, runs[0], runs[1], PROBLEM.x[:3])
    expected = math.sqrt((1 - 0.5 / 4) / (1 - 2.0 / 4))
    torch.testing.assert_close(found.spread, torch.full((3, 1), expected), rtol=0.12, atol=0.0)
    assert not found.agrees()


# ------------------------------------------------------------------------------------------------------ to ArviZ


def test_the_samplers_figures_are_sample_stats() -> None:
    diverging = torch.zeros(2, 8)
    diverging[1, 7] = 1.0
    stats = {"energy": torch.arange(16.0).view(2, 8), "diverging": diverging}
    chains = exact_chains(2, 8, stats=stats)
    data = to_arviz(PROBLEM.model, chains, PROBLEM.x, PROBLEM.y, groups=["posterior", "sample_stats"], num_samples=4)
    energy = data.sample_stats["energy"]
    assert energy.dims == ("chain", "draw")
    kept = [0, 2, 5, 7]
    np.testing.assert_array_equal(energy.values, stats["energy"].numpy()[:, kept])
    assert data.sample_stats["diverging"].dtype == bool
    assert data.sample_stats["diverging"].values.sum() == 1
    draws = chains.by_chain()["net.weight"][:, kept].numpy()
    np.testing.assert_array_equal(data.posterior["net.weight"].values, draws)
    everything = to_arviz(PROBLEM.model, chains, PROBLEM.x, PROBLEM.y)
    assert everything.sample_stats["energy"].shape == (2, 8)
    with pytest.raises(ValueError, match="groups: 'sample_stats' needs Chains of a sampler"):
        to_arviz(PROBLEM.model, exact_chains(2, 8), PROBLEM.x, PROBLEM.y, groups="sample_stats")


# ------------------------------------------------------------------------------------------------------ mistakes


def test_mistakes_get_clear_errors() -> None:
    model, x, y = PROBLEM.model, PROBLEM.x, PROBLEM.y
    with pytest.raises(ValueError, match=r"chains: their sampler recorded no 'energy' \(but nothing\); draw"):
        energy_bfmi(exact_chains())
    with pytest.raises(ValueError, match="chains: their sampler recorded no 'kinetic_temperature'"):
        kinetic_temperature(exact_chains(2, 8, stats={"energy": torch.zeros(2, 8)}))
    with pytest.raises(TypeError, match="chains: expected Chains"):
        energy_bfmi(MAP(model))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature: expected a positive number"):
        kinetic_temperature(exact_chains(), 0.0)
    with pytest.raises(ValueError, match="num_samples: R-hat needs at least 4 draws"):
        log_density_diagnostics(model, exact_chains(2, 3), x, y)
    with pytest.raises(ValueError, match="posterior: its draws all have one density"):
        log_density_diagnostics(model, [MAP(model), MAP(model)], x, y, num_samples=5)
    with pytest.raises(ValueError, match="args: at some inputs all draws of a run predict the same"):
        step_size_agreement(model, exact_chains(), exact_chains(), torch.zeros(2, 2).double())
