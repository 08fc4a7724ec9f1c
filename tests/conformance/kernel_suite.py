"""What every kernel of SG-MCMC must do: known stationary laws, temperature, chains apart, a state that says all.

class TestMyKernel(KernelConformance):
    def make_kernel(self, step_size, temperature=1.0):
        return MyKernel(step_size, temperature)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from pyrobnn.sampling import sample
from pyrobnn.sampling.kernels.base import StochasticGradientKernel
from tests.conformance.conjugate import ConjugateRegression

COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
"""Of the two-dimensional target; its precision has the eigenvalues 0.73 and 9.7."""
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)


def fresh(like: Tensor, generator: torch.Generator | None = None) -> Callable[[], Tensor]:
    """A source of noise."""
    return lambda: torch.randn(like.shape, dtype=like.dtype, generator=generator)


def run_on_gaussian(
    kernel: StochasticGradientKernel, num_chains: int, steps: int, noise: float = 0.0, start: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Final values ``[C, 2]`` on ``N(MEAN, COVARIANCE)`` and the kernel's state, with gradient noise of that size."""
    precision = torch.linalg.inv(COVARIANCE)
    flat = MEAN.repeat(num_chains, 1) if start is None else start.clone()
    state, source = kernel.start(flat, steps // 2), fresh(flat)
    for step in range(steps):
        gradient = (flat - MEAN) @ precision + noise * torch.randn_like(flat)
        kernel.update(flat, gradient, state, step, source)
    return flat, state


class KernelConformance:
    """The suite; subclasses implement :meth:`make_kernel`.

    Attributes:
        gaussian_step: Step size on the two-dimensional Gaussian.
        gaussian_steps: Steps until its stationary law is reached.
        regression_step: Step size on the conjugate regression.
        regression_steps: Steps of warmup there.
    """

    gaussian_step: ClassVar[float] = 0.01
    gaussian_steps: ClassVar[int] = 600
    regression_step: ClassVar[float]
    regression_steps: ClassVar[int] = 60

    def make_kernel(self, step_size: Any, temperature: float = 1.0) -> StochasticGradientKernel:
        """The kernel."""
        raise NotImplementedError

    @pytest.mark.statistical
    @pytest.mark.parametrize("temperature", [1.0, 0.25])
    def test_covariance_of_a_correlated_gaussian(self, temperature: float) -> None:
        """4,000 chains: means within 0.1 sd (6 standard errors), covariance within 10 % (4 standard errors).

        A temperature multiplies the covariance.
        """
        kernel = self.make_kernel(self.gaussian_step, temperature)
        draws, _ = run_on_gaussian(kernel, 4_000, self.gaussian_steps)
        scale = (temperature * COVARIANCE.diagonal()).sqrt()
        assert float(((draws.mean(0) - MEAN) / scale).abs().max()) < 0.1
        relative = torch.cov(draws.T) / (temperature * COVARIANCE)
        assert float((relative - 1.0).abs().max()) < 0.1

    @pytest.mark.statistical
    def test_a_far_start_is_forgotten(self) -> None:
        """4,000 chains from 30 standard deviations away in the narrow direction: the same law as from the mean.

        Variances along the principal axes within 10 %, 4.5 standard errors.
        """
        variances, axes = torch.linalg.eigh(COVARIANCE)
        start = (MEAN + 30.0 * variances[0].sqrt() * axes[:, 0]).repeat(4_000, 1)
        kernel = self.make_kernel(self.gaussian_step)
        draws, _ = run_on_gaussian(kernel, 4_000, 2 * self.gaussian_steps, start=start)
        ratio = ((draws - MEAN) @ axes).square().mean(0) / variances
        assert float((ratio - 1.0).abs().max()) < 0.1, ratio

    @pytest.mark.statistical
    def test_conjugate_regression(self) -> None:
        """120 chains of 100 draws each through ``sample``, full gradients.

        Means within 0.1 sd and variances within 10 %; their standard errors, from the spread over chains, are checked
        to be at most 0.03 sd and 3.5 %.
        """
        data = ConjugateRegression(num_data=20, dim=1, noise=1.0)
        model = data.model()
        start = {"net.weight": data.mean[:-1].unsqueeze(0), "net.bias": data.mean[-1:]}
        guide = sample(
            model,
            (data.x, data.y),
            kernel=self.make_kernel(self.regression_step),
            num_samples=100,
            warmup_steps=self.regression_steps,
            thinning=5,
            num_chains=120,
            init=start,
            seed=1,
            progress=False,
        )
        draws = guide.flat_draws(torch.arange(guide.num_members)).view(120, 100, 2)
        sd = torch.linalg.inv(data.precision).diagonal().sqrt()
        scaled = (draws - data.mean) / sd
        means, squares = scaled.mean(1), scaled.square().mean(1)
        errors = [value.std(0).max() / 120**0.5 for value in (means, squares)]
        assert float(errors[0]) < 0.03
        assert float(errors[1]) < 0.035
        assert float(means.mean(0).abs().max()) < 0.1
        assert float((squares.mean(0) - 1.0).abs().max()) < 0.1

    def test_chains_are_run_as_if_alone(self) -> None:
        """The same noise gives each chain of three what it gives a chain by itself."""
        kernel = self.make_kernel(self.gaussian_step)
        start = torch.randn(3, 2, dtype=torch.float64)
        kicks = torch.randn(20, 3, 2, dtype=torch.float64)
        state = kernel.start(start, 10)

        def final(rows: slice) -> Tensor:
            flat = start[rows].clone()
            own = {n: v[rows].clone() if v.dim() else v.clone() for n, v in state.items()}
            for step, kick in enumerate(kicks):
                kernel.update(flat, flat.sin(), own, step, kick[rows].clone)
            return flat

        torch.testing.assert_close(final(slice(None)), torch.cat([final(slice(i, i + 1)) for i in range(3)]))

    def test_state_is_all_there_is(self) -> None:
        """A run that goes on from a copy of values and state ends at the same values."""
        kernel = self.make_kernel(self.gaussian_step)
        flat = torch.randn(2, 3)
        state = kernel.start(flat, 10)
        assert all(isinstance(value, Tensor) for value in state.values())
        kicks = torch.randn(10, 2, 3)
        for step in range(5):
            kernel.update(flat, flat.sin(), state, step, kicks[step].clone)
        copied, copied_state = flat.clone(), copy.deepcopy(state)
        for step in range(5, 10):
            kernel.update(flat, flat.sin(), state, step, kicks[step].clone)
        for step in range(5, 10):
            kernel.update(copied, copied.sin(), copied_state, step, kicks[step].clone)
        assert torch.equal(flat, copied)

    @pytest.mark.parametrize("step_size", [0.0, -1.0, float("nan"), float("inf"), "small", True, None])
    def test_step_sizes_that_are_none(self, step_size: Any) -> None:
        with pytest.raises(ValueError, match="step_size: expected a positive number"):
            self.make_kernel(step_size)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf")])
    def test_temperatures_that_are_none(self, temperature: float) -> None:
        with pytest.raises(ValueError, match="temperature: expected a positive number"):
            self.make_kernel(0.1, temperature)

    def test_schedules_that_leave_the_range(self) -> None:
        kernel = self.make_kernel(lambda step: 0.1 - 0.05 * step)
        flat = torch.zeros(1, 2)
        state = kernel.start(flat, 10)
        kernel.update(flat, flat.clone(), state, 1, fresh(flat))
        with pytest.raises(ValueError, match=r"step_size: .* the schedule gave 0\.0 at step 2"):
            kernel.update(flat, flat.clone(), state, 2, fresh(flat))
