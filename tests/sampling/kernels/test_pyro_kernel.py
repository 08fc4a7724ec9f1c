"""Pyro's kernels on the flat potential: known posteriors, statistics, and the gradients they are handed."""

from __future__ import annotations

from typing import Any

import pyro.infer
import pytest
import torch

import pyrobnn as pb
from pyrobnn.objectives.parts import NonFiniteLossError
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.kernels.pyro_kernel import PyroKernel, _Counted
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.full_batch_suite import COVARIANCE, MEAN, assert_moments, gaussian, run, z_scores
from tests.conformance.monte_carlo import Z


def nuts(**options: Any) -> PyroKernel:
    settings = {"step_size": 0.1} | options
    return PyroKernel(lambda potential: pyro.infer.NUTS(potential_fn=potential, **settings))


@pytest.mark.statistical
def test_a_correlated_gaussian() -> None:
    result = run(nuts(full_mass=True), gaussian, num_samples=1200, warmup_steps=150, num_chains=1)
    assert_moments(result.draws, MEAN, COVARIANCE)


@pytest.mark.statistical
def test_conjugate_regression_by_nuts_and_hmc_of_pyro() -> None:
    case = ConjugateRegression()
    hmc = PyroKernel(lambda potential: pyro.infer.HMC(potential_fn=potential, step_size=0.1, num_steps=6))
    for kernel, chains in ((nuts(full_mass=True), 1), (hmc, 2)):
        result = run(
            kernel, case.model(), (case.x, case.y), num_samples=1200 // chains, warmup_steps=150, num_chains=chains
        )
        covariance = torch.linalg.inv(case.precision)
        if kernel is hmc:  # its draws are not independent enough for the fixed limits
            assert (z_scores(result.draws, case.mean) < Z).all()
            assert (z_scores((result.draws - case.mean).square(), covariance.diagonal()) < Z).all()
        else:
            assert_moments(result.draws, case.mean, covariance)


def test_the_potential_they_see_has_the_recorded_gradient() -> None:
    case = ConjugateRegression()
    potential = Potential(case.model(), (case.x, case.y))
    flat = torch.randn(4, dtype=torch.float64, requires_grad=True)
    counted = _Counted(potential.recorded(flat))
    value = counted({"flat": flat})
    (gradient,) = torch.autograd.grad(2.0 * value, flat)
    torch.testing.assert_close(value, potential(flat))
    torch.testing.assert_close(gradient, 2.0 * case.precision @ (flat.detach() - case.mean), rtol=1e-6, atol=1e-6)
    assert counted.calls == 1


def test_statistics_of_each_draw() -> None:
    kernel = nuts(step_size=0.2, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=4)
    result = run(kernel, gaussian, num_samples=10, thinning=2, num_chains=2)
    stats = result.stats
    assert result.draws.shape == (2, 10, 2)
    assert all(value.shape == (2, 10) for value in stats.values())
    assert ((stats["n_steps"] >= 1) & (stats["n_steps"] <= 2**4)).all()
    torch.testing.assert_close(stats["step_size"], torch.full((2, 10), 0.2))
    potential = Potential(gaussian)
    torch.testing.assert_close(stats["lp"][1, 3], -potential(result.draws[1, 3]))
    assert not stats["diverging"].any() and stats["moved"].all()


def test_divergences_are_told() -> None:
    kernel = PyroKernel(
        lambda potential: pyro.infer.HMC(potential_fn=potential, step_size=100.0, num_steps=3, adapt_step_size=False)
    )
    with pytest.warns(UserWarning, match="PyroKernel: 100 % of the transitions of chain 0 diverged"):
        result = run(kernel, gaussian, num_samples=5, num_chains=1, init=MEAN.unsqueeze(0))
    assert result.stats["diverging"].all()
    assert not result.stats["moved"].any()


def test_the_seed_decides_and_the_global_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        run(nuts(), gaussian, num_samples=20, warmup_steps=60, num_chains=2, seed=seed).draws for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_sample_hands_over_draws_of_sites() -> None:
    case = ConjugateRegression()
    guide = pb.sample(
        case.model(),
        (case.x, case.y),
        kernel=nuts(),
        num_samples=20,
        warmup_steps=60,
        num_chains=2,
        seed=0,
        progress=False,
    )
    assert guide.sample(10)["net.weight"].shape == (10, 1, 3)


def test_a_start_that_is_not_finite_is_refused() -> None:
    case = ConjugateRegression()
    init = torch.full((1, 4), torch.inf, dtype=torch.float64)
    with pytest.raises(NonFiniteLossError, match=r"chain 0 starts"):
        run(nuts(), case.model(), (case.x, case.y), num_chains=1, init=init)
