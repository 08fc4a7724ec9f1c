"""NUTS: the suite with both mass matrices, agreement with Pyro's in law, pace of the chains, and what it refuses."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch

import pyrobnn as pb
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.kernels.nuts import NUTS, Chains
from pyrobnn.sampling.kernels.pyro_kernel import PyroKernel
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.full_batch_suite import (
    COVARIANCE,
    MEAN,
    FullBatchConformance,
    assert_moments,
    banana,
    gaussian,
    run,
    z_of_chains,
    z_scores,
)
from tests.conformance.monte_carlo import Z

FIXED: dict[str, Any] = {"adapt_step_size": False, "adapt_mass": None, "compile": False}


class TestNUTS(FullBatchConformance):
    def make_kernel(self) -> NUTS:
        return NUTS(compile=False)

    def make_coarse(self) -> NUTS:
        return NUTS(0.4, max_tree_depth=3, **FIXED)


class TestDenseNUTS(FullBatchConformance):
    def make_kernel(self) -> NUTS:
        return NUTS(adapt_mass="dense")

    def make_coarse(self) -> NUTS:
        return NUTS(0.4, adapt_step_size=False, adapt_mass="dense")


# ------------------------------------------------------------------------------------------------ known posteriors


@pytest.mark.statistical
def test_a_banana() -> None:
    """Means, variances and the covariance with the square, which are 1 and 2."""
    result = run(NUTS(target_accept=0.9, compile=False), banana, num_chains=16, num_samples=300, warmup_steps=150)
    first, second = result.draws.unbind(-1)
    found = torch.stack([first, second, first**2, second**2, first * second, first**2 * second], -1)
    known = torch.tensor([0.0, 0.0, 1.0, 2.25, 0.0, 2.0])
    assert (z_scores(found, known) < Z).all(), z_scores(found, known)


@pytest.mark.statistical
def test_one_leapfrog_a_transition() -> None:
    """With trees of depth 1."""
    kernel = NUTS(0.8, adapt_step_size=False, adapt_mass="dense", max_tree_depth=1)
    result = run(kernel, gaussian, num_chains=30, num_samples=400, warmup_steps=100)
    assert (result.stats["n_steps"] == 1).all()
    assert_moments(result.draws, MEAN, COVARIANCE)


@pytest.mark.statistical
def test_a_gaussian_of_thirty_coordinates() -> None:
    """Scales from 0.3 to 3 and neighbors correlated by 0.5, in double precision."""
    size = 30
    places = torch.arange(size, dtype=torch.float64)
    correlation = 0.5 ** (places - places.unsqueeze(-1)).abs()
    scales = 3.0 ** torch.linspace(-1.0, 1.0, size, dtype=torch.float64)
    covariance = correlation * scales * scales.unsqueeze(-1)
    factor = torch.linalg.cholesky(covariance)

    def model() -> None:
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(size, dtype=torch.float64), scale_tril=factor))

    init = (factor @ torch.randn(size, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).T
    result = run(NUTS(compile=False), model, num_chains=16, num_samples=150, warmup_steps=160, init=init)
    assert_moments(result.draws / scales, torch.zeros(size, dtype=torch.float64), correlation)
    assert float(result.stats["tree_depth"].double().mean()) < 4.0


def pyro_nuts(step_size: float) -> PyroKernel:
    options = {"step_size": step_size, "adapt_step_size": False, "adapt_mass_matrix": False}
    return PyroKernel(lambda potential: pyro.infer.NUTS(potential_fn=potential, **options))


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore:.*diverged:UserWarning")  # in the banana's tails
@pytest.mark.parametrize(("model", "step_size"), [(gaussian, 0.5), (banana, 0.3)], ids=["gaussian", "banana"])
def test_it_is_pyros_nuts_in_law(model: Any, step_size: float) -> None:
    """4,000 draws and 1,200 of Pyro's: moments, and how often transitions take each number of leapfrogs or diverge."""
    ours = run(NUTS(step_size, **FIXED), model, num_chains=20, num_samples=200, warmup_steps=20)
    pyros = run(pyro_nuts(step_size), model, num_samples=1200, warmup_steps=20, num_chains=1)
    for power in (1, 2):
        assert (z_of_chains(ours.draws**power, pyros.draws**power) < Z).all()
    numbers = [result.stats["n_steps"] for result in (ours, pyros)]
    assert len(numbers[0].unique()) >= 4
    for number in torch.cat([values.flatten() for values in numbers]).unique():
        counts = [(values == number).float().unsqueeze(-1) for values in numbers]
        if min(float(count.sum()) for count in counts) >= 20:
            assert (z_of_chains(*counts) < Z).all(), int(number)
    sums = [values.float().unsqueeze(-1) for values in numbers]
    assert (z_of_chains(*sums) < Z).all()
    diverging = [result.stats["diverging"].float().unsqueeze(-1) for result in (ours, pyros)]
    if model is banana:
        assert (z_of_chains(*diverging) < Z).all()


def test_a_dense_mass_matrix_makes_trees_shallow() -> None:
    """A correlation of 0.99: with the diagonal matrix trees have some ten leapfrogs more."""
    covariance = torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.float64)

    def model() -> None:
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance))

    dense, diagonal = (
        run(NUTS(adapt_mass=mass, compile=False), model, num_samples=100, warmup_steps=100)
        for mass in ("dense", "diagonal")
    )
    assert float(dense.stats["n_steps"].double().mean()) < 4.0
    assert float(diagonal.stats["n_steps"].double().mean()) > 10.0


# ------------------------------------------------------------------------------------------------------- statistics


def test_a_higher_target_makes_steps_shorter() -> None:
    """The acceptance of a transition is skewed, so that its mean is a little above the target, as in Stan."""
    case = ConjugateRegression()
    sizes = []
    for target in (0.6, 0.8, 0.95):
        kernel = NUTS(target_accept=target, compile=False)
        result = run(kernel, case.model(), (case.x, case.y), num_chains=8, num_samples=50, warmup_steps=150)
        assert target - 0.05 < float(result.stats["acceptance_rate"].mean()) < target + 0.2
        sizes.append(float(result.stats["step_size"].mean()))
    assert sizes[0] > 1.05 * sizes[1] > 1.3 * sizes[2]


def test_leapfrogs_and_doublings() -> None:
    result = run(NUTS(0.2, max_tree_depth=4, **FIXED), gaussian, num_samples=200)
    steps, depth = result.stats["n_steps"], result.stats["tree_depth"]
    assert ((depth >= 0) & (depth <= 4)).all() and (depth == 4).any() and (depth < 4).any()
    assert ((steps >= 2**depth - 1) & (steps <= torch.where(depth == 4, 15, 2 ** (depth + 1) - 1))).all()
    torch.testing.assert_close(result.stats["step_size"], torch.full((4, 200), 0.2))
    assert not result.stats["diverging"].any()


def test_divergences_are_told_and_move_nothing() -> None:
    init = torch.zeros(2, 2) + MEAN
    with pytest.warns(UserWarning, match=r"NUTS: chains 0, 1 did not move.*smaller step_size"):
        result = run(NUTS(100.0, **FIXED), gaussian, num_chains=2, init=init, num_samples=20)
    assert result.stats["diverging"].all()
    assert torch.equal(result.draws, init.unsqueeze(1).expand(-1, 20, -1))


# ------------------------------------------------------------------------------------------------------------ chains


@pytest.mark.statistical
def test_chains_do_not_know_of_each_other() -> None:
    """Without adaptation neighbors among 30 chains are uncorrelated, and so are their numbers of leapfrogs."""
    result = run(NUTS(0.3, **FIXED), gaussian, num_samples=150, warmup_steps=10, num_chains=30)
    whitened = torch.linalg.solve(torch.linalg.cholesky(COVARIANCE), (result.draws - MEAN).unsqueeze(-1)).squeeze(-1)
    steps = result.stats["n_steps"].float()
    values = torch.cat([whitened, ((steps - steps.mean()) / steps.std()).unsqueeze(-1)], -1)
    products = values[::2].unsqueeze(-1) * values[1::2].unsqueeze(-2)
    assert (z_scores(products.flatten(2), torch.zeros(9)) < Z).all()


def test_one_chain_that_diverges_does_not_hurt_another() -> None:
    """The second chain's step size is right; the first starts where the potential is too steep for it."""

    def steep() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(z > 20.0, -1e8 * (z - 50.0).square(), torch.zeros_like(z)))

    kernel = NUTS(0.5, **FIXED)
    with pytest.warns(UserWarning, match="chain 0 did not move"):
        result = run(kernel, steep, num_chains=2, num_samples=500, init=torch.tensor([[50.0], [0.0]]))
    assert result.stats["diverging"][0].all() and not result.stats["diverging"][1].any()
    assert (z_scores(result.draws[1:], torch.zeros(1)) < Z).all()
    assert (z_scores(result.draws[1:].square(), torch.ones(1)) < Z).all()


def started(kernel: NUTS, num_chains: int, total: int) -> Chains:
    potential = Potential(banana)
    return Chains(kernel, potential, torch.zeros(num_chains, 2), 0, total, seed=0)


def test_chains_do_not_wait_for_the_deepest_tree() -> None:
    """Eight chains on the banana, whose trees are of very different sizes: 90 % of all gradients are of use.

    Waiting at each transition, less than 70 % would be.
    """
    chains = started(NUTS(0.15, **FIXED), 8, 200)
    with torch.no_grad():
        found = chains.run(200, 1, lambda count: None)
    used = found.stats["n_steps"].sum()
    assert float(used) / (8 * chains.trees.num_rounds) > 0.9
    waiting = found.stats["n_steps"].amax(0).sum()
    assert float(used) / (8 * float(waiting)) < 0.7


def test_progress_counts_every_transition() -> None:
    told: list[int] = []
    with torch.no_grad():
        started(NUTS(0.3, **FIXED), 3, 12).run(4, 3, told.append)
    assert sum(told) == 3 * 12


def test_compiled_chains_are_the_same() -> None:
    case = ConjugateRegression()
    model = case.model()
    compiled, eager = (
        run(NUTS(0.1, adapt_step_size=False, adapt_mass=None, compile=way), model, (case.x, case.y), num_samples=10)
        for way in (True, False)
    )
    assert torch.equal(compiled.stats["n_steps"], eager.stats["n_steps"])
    torch.testing.assert_close(compiled.draws, eager.draws, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("adapt_mass", ["diagonal", "dense"])
def test_chains_on_a_gpu(adapt_mass: Any) -> None:
    mean, covariance = MEAN.cuda(), COVARIANCE.cuda()

    def model() -> None:
        pyro.sample("z", dist.MultivariateNormal(mean, covariance))

    kernel = NUTS(adapt_mass=adapt_mass, compile=False)
    result = run(kernel, model, num_chains=16, num_samples=200, warmup_steps=150, init=MEAN.cuda().repeat(16, 1))
    assert result.draws.is_cuda and all(values.is_cuda for values in result.stats.values())
    assert_moments(result.draws.cpu(), MEAN, COVARIANCE)


def test_each_chain_on_an_executor() -> None:
    case = ConjugateRegression()
    guide = pb.sample(
        case.model(),
        (case.x, case.y),
        kernel=NUTS(compile=False),
        num_samples=10,
        warmup_steps=100,
        num_chains=2,
        seed=0,
        executor=pb.SerialExecutor(),
        progress=False,
    )
    assert guide.stats["tree_depth"].shape == (2, 10)
    assert not torch.equal(guide.stats["step_size"][0], guide.stats["step_size"][1])


def test_warmup_ends_when_it_is_told_to() -> None:
    """After it step sizes and mass matrix stay as they are."""
    result = run(NUTS(compile=False), gaussian, num_samples=50, warmup_steps=40)
    assert (result.stats["step_size"].diff(dim=1) == 0).all()


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, "step_size: expected a positive number"),
        ({"adapt_step_size": False}, "step_size: it is None and does not adapt"),
        ({"max_tree_depth": 0}, "max_tree_depth: expected a positive int"),
        ({"adapt_mass": "full"}, "adapt_mass: expected 'diagonal', 'dense' or None, got 'full'"),
        ({"target_accept": 0.0}, "target_accept: expected a probability"),
        ({"compile": 1.5}, "compile: expected True, False or 'auto', got 1.5"),
        ({"compile": True, "adapt_mass": "dense"}, "compile: leapfrogs with a dense mass matrix cannot be compiled"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NUTS(**options)
