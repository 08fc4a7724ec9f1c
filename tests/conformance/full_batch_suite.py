"""What every kernel of HMC's kind must do: known posteriors, an invariant law, seeds, thinning, refusals.

class TestMyKernel(FullBatchConformance):
    def make_kernel(self):
        return MyKernel()

    def make_coarse(self):
        return MyKernel(step_size=0.4, adapt_step_size=False)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.stats import effective_sample_size
from scipy import stats
from torch import Tensor

import pyrobnn as pb
from pyrobnn.objectives.parts import NonFiniteLossError
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.kernels.base import ChainResult
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.monte_carlo import Z

MEAN = torch.tensor([1.0, -2.0])
COVARIANCE = torch.tensor([[1.0, 0.9 * 3.0], [0.9 * 3.0, 9.0]])


def gaussian() -> None:
    """Two coordinates with the correlation 0.9."""
    pyro.sample("z", dist.MultivariateNormal(MEAN, COVARIANCE))


def banana() -> None:
    """The second coordinate lies around a parabola of the first."""
    first = pyro.sample("first", dist.Normal(0.0, 1.0))
    pyro.sample("second", dist.Normal(first.square() - 1.0, 0.5))


def run(kernel: Any, model: Callable[..., Any], args: tuple[Any, ...] = (), **options: Any) -> ChainResult:
    """A run of four chains and 100 draws, without warmup, from starts near that of the model."""
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
    """Of the means of draws ``[C, S, ...]``."""
    return (draws.flatten(0, 1).mean(0) - known).abs() / errors_of_mean(draws)


def z_of_chains(a: Tensor, b: Tensor) -> Tensor:
    """Of the difference between means of two runs ``[C, S, ...]``."""
    error = (errors_of_mean(a) ** 2 + errors_of_mean(b) ** 2).sqrt()
    return (a.flatten(0, 1).mean(0) - b.flatten(0, 1).mean(0)).abs() / error


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


class FullBatchConformance:
    """The suite; subclasses implement :meth:`make_kernel` and :meth:`make_coarse`.

    Attributes:
        draws: Draws of each of 16 chains after which moments are compared.
    """

    draws: ClassVar[int] = 200

    def make_kernel(self) -> Any:
        """The kernel as it is used, with adaptation."""
        raise NotImplementedError

    def make_coarse(self) -> Any:
        """With fixed steps that are so long that their errors must be corrected, and as few as one or two."""
        raise NotImplementedError

    @pytest.mark.statistical
    def test_a_correlated_gaussian(self) -> None:
        result = run(self.make_kernel(), gaussian, num_chains=16, num_samples=self.draws, warmup_steps=150)
        assert_moments(result.draws, MEAN, COVARIANCE)

    @pytest.mark.statistical
    def test_conjugate_regression(self) -> None:
        case = ConjugateRegression()
        options = {"num_chains": 16, "num_samples": self.draws, "warmup_steps": 150}
        result = run(self.make_kernel(), case.model(), (case.x, case.y), **options)
        assert_moments(result.draws, case.mean, torch.linalg.inv(case.precision))

    @pytest.mark.statistical
    @pytest.mark.filterwarnings("ignore:.*diverged:UserWarning")  # steps are long in the banana's tails
    @pytest.mark.parametrize("count", [1, 4])
    def test_exact_draws_stay_exact(self, count: int) -> None:
        """4,000 chains from exact draws of the banana, after 1 and 4 transitions.

        Kolmogorov–Smirnov tests of the first coordinate and of the second around the parabola, p above 1e-4.
        """
        noise = torch.randn(4_000, 2, generator=torch.Generator().manual_seed(3))
        first = noise[:, 0]
        init = torch.stack([first, first.square() - 1.0 + 0.5 * noise[:, 1]], -1)
        result = run(self.make_coarse(), banana, num_chains=4_000, num_samples=count, init=init)
        first, second = result.draws[:, -1].unbind(-1)
        assert float((first != init[:, 0]).float().mean()) > 0.5
        for values in (first, 2.0 * (second - first.square() + 1.0)):
            assert stats.kstest(values.double().numpy(), "norm").pvalue > 1e-4

    @pytest.mark.parametrize("beyond", [torch.nan, torch.inf, -torch.inf])
    def test_a_potential_that_is_not_finite_somewhere_is_never_entered(self, beyond: float) -> None:
        def model() -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("wall", torch.where(z > 0.5, torch.full_like(z, beyond), torch.zeros_like(z)))

        # Pyro's validation would refuse a factor of NaN when the model is looked at.
        with pyro.validation_enabled(False), pytest.warns(UserWarning, match="diverged"):
            result = run(self.make_coarse(), model, num_chains=2, init=torch.zeros(2, 1), num_samples=200)
        assert (result.draws <= 0.5).all() and (result.draws[:, 1:] != result.draws[:, :-1]).any()
        assert result.stats["diverging"].any() and not result.stats["diverging"].all()
        assert result.stats["lp"].isfinite().all() and result.stats["energy"].isfinite().all()

    def test_statistics_have_a_figure_of_each_draw(self) -> None:
        result = run(self.make_coarse(), gaussian, num_samples=10, thinning=2, num_chains=3)
        assert result.draws.shape == (3, 10, 2)
        assert all(value.shape == (3, 10) for value in result.stats.values())
        assert {"acceptance_rate", "energy", "lp", "diverging", "step_size", "n_steps"} <= result.stats.keys()
        torch.testing.assert_close(result.stats["lp"][1, 7], -Potential(gaussian)(result.draws[1, 7]))
        rate = result.stats["acceptance_rate"]
        assert ((rate >= 0.0) & (rate <= 1.0)).all() and float(rate.std()) > 0.0

    def test_energies_are_potential_and_kinetic(self) -> None:
        case = ConjugateRegression()
        options = {"num_chains": 8, "num_samples": 100, "warmup_steps": 100}
        result = run(self.make_kernel(), case.model(), (case.x, case.y), **options)
        found = result.stats
        kinetic = found["energy"] + found["lp"]
        assert (kinetic > 0).all()
        # Each kinetic energy of a draw is chi-squared with 4 degrees of freedom over 2: mean 2.
        assert (z_scores(kinetic.unsqueeze(-1), torch.tensor([2.0])) < Z).all()
        bayesian_fraction = found["energy"].diff(dim=1).square().sum(1) / (
            (found["energy"] - found["energy"].mean(1, keepdim=True)).square().sum(1)
        )
        assert (bayesian_fraction > 0.5).all()  # 1 or more for a Gaussian; below 0.3 is bad
        assert not found["diverging"].any()

    def test_burn_in_finds_scales_and_step_size(self) -> None:
        scales = torch.tensor([0.1, 1.0, 3.0])

        def model() -> None:
            pyro.sample("z", dist.Normal(0.0, scales).to_event(1))

        init = scales * torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        result = run(self.make_kernel(), model, num_chains=8, warmup_steps=160, num_samples=100, init=init)
        ratio = result.draws.flatten(0, 1).std(0) / scales
        assert ((ratio - 1).abs() < 0.15).all(), ratio
        assert float(result.stats["n_steps"].float().mean()) < 8  # without the scales it would take more than 20
        assert float(result.stats["acceptance_rate"].mean()) == pytest.approx(0.82, abs=0.12)

    def test_thinning_keeps_every_third_draw(self) -> None:
        init = torch.zeros(2, 2) + MEAN
        every = run(self.make_coarse(), gaussian, num_chains=2, init=init, num_samples=30)
        third = run(self.make_coarse(), gaussian, num_chains=2, init=init, num_samples=10, thinning=3)
        assert torch.equal(third.draws, every.draws[:, 2::3])
        for name, values in every.stats.items():
            assert torch.equal(third.stats[name], values[:, 2::3]), name

    def test_the_seed_decides_and_the_global_state_is_left_alone(self) -> None:
        kernel, init = self.make_kernel(), torch.zeros(2, 2)
        state = torch.get_rng_state()
        first, again, other = (
            run(kernel, gaussian, num_chains=2, init=init, num_samples=10, warmup_steps=60, seed=seed).draws
            for seed in (3, 3, 4)
        )
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, again)
        assert not torch.equal(first, other) and not torch.equal(first[0], first[1])
        assert torch.equal(init, torch.zeros(2, 2))

    @pytest.mark.statistical
    @pytest.mark.filterwarnings("ignore:.*diverged:UserWarning")
    def test_several_chains_are_one_chain_in_law(self) -> None:
        many, one = (
            run(self.make_coarse(), banana, num_samples=count, init=torch.zeros(chains, 2), num_chains=chains)
            for chains, count in ((20, 120), (1, 1200))
        )
        for power in (1, 2):
            a, b = (result.draws[:, 20:] ** power for result in (many, one))
            assert (z_of_chains(a, b) < Z).all()

    def test_a_single_chain(self) -> None:
        result = run(self.make_kernel(), gaussian, num_chains=1, num_samples=5, warmup_steps=100)
        assert result.draws.shape == (1, 5, 2) and result.draws.isfinite().all()

    def test_sample_hands_over_draws_of_sites_and_statistics(self) -> None:
        case = ConjugateRegression()
        guide = pb.sample(
            case.model(),
            (case.x, case.y),
            kernel=self.make_kernel(),
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
        assert guide.stats["n_steps"].shape == (3, 60)

    def test_a_start_that_is_not_finite_is_refused(self) -> None:
        case = ConjugateRegression()
        init = torch.zeros(2, 4, dtype=torch.float64)
        init[1, 3] = torch.nan
        with pytest.raises(NonFiniteLossError, match=r"chain 1 starts: .*'net.bias'"):
            run(self.make_kernel(), case.model(), (case.x, case.y), num_chains=2, init=init)
