"""Chains of HMC and NUTS that start far from the posterior arrive, each of them.

A learned noise scale is where it matters: the density near zero falls by many thousand nats.
"""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import pytest
import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.sampling import HMC, NUTS
from tests.conformance.monte_carlo import Z


def linear(dtype: torch.dtype) -> tuple[pb.SupervisedModel, Tensor, Tensor]:
    """Linear regression on 12 data whose noise has a HalfCauchy prior."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(12, 2, generator=generator).double()
    y = (x @ torch.tensor([[1.0], [-0.5]]).double()) + 0.6 * torch.randn(12, 1, generator=generator).double()
    likelihood = pb.likelihoods.Normal(dist.HalfCauchy(0.3))
    model = pb.SupervisedModel(nn.Linear(2, 1), likelihood, dist.Normal(0.0, 1.0), num_data=12)
    return model.to(dtype), x.to(dtype), y.to(dtype)


def log_scale_moments() -> tuple[float, float]:
    """Mean and variance of the log noise scale by quadrature, the weights integrated out in closed form."""
    _, x, y = linear(torch.float64)
    features = torch.cat([x, torch.ones(12, 1, dtype=torch.float64)], 1)
    grid = torch.linspace(-4.0, 3.0, 2001, dtype=torch.float64)
    scale = grid.exp()
    covariance = features @ features.T + scale.square()[:, None, None] * torch.eye(12, dtype=torch.float64)
    evidence = dist.MultivariateNormal(torch.zeros(12, dtype=torch.float64), covariance).log_prob(y.squeeze(-1))
    weights = (evidence + dist.HalfCauchy(torch.tensor(0.3).double()).log_prob(scale) + grid).softmax(0)
    mean = (weights * grid).sum()
    return float(mean), float((weights * (grid - mean).square()).sum())


def draws(kernel: Any, dtype: torch.dtype, log_scales: list[float], seed: int, **options: int) -> Tensor:
    """Log noise scales ``[C, S]`` of chains that start there."""
    model, x, y = linear(dtype)
    starts = [{"likelihood.scale": torch.tensor(value, dtype=dtype).exp()} for value in log_scales]
    options = {"num_samples": 200, "warmup_steps": 200} | options
    chains = pb.sample(
        model, (x, y), kernel=kernel, init=starts, num_chains=len(starts), seed=seed, progress=False, **options
    )
    return chains.by_chain(["likelihood.scale"])["likelihood.scale"].log().reshape(len(starts), -1).double()


def assert_each_chain_is_right(found: Tensor) -> None:
    """Means of each chain within 5 Monte Carlo errors of quadrature; standard deviations within a third."""
    mean, variance = log_scale_moments()
    for chain in found:
        error = chain.std() / effective_sample_size(chain.unsqueeze(0), 0, 1).sqrt()
        assert float(error) < 0.06
        assert abs(float(chain.mean()) - mean) < Z * float(error)
        assert float(chain.std()) == pytest.approx(variance**0.5, rel=1 / 3)


def test_quadrature() -> None:
    mean, variance = log_scale_moments()
    assert (mean, variance**0.5) == (pytest.approx(-0.905, abs=2e-3), pytest.approx(0.237, abs=2e-3))


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("dtype", "log_scales", "seed"),
    [
        (torch.float64, [-0.9, -8.0, -1.0, -4.5], 1),
        (torch.float32, [-6.0, -0.9, -1.0, 6.0], 2),
    ],
)
def test_every_chain_of_hmc_arrives(dtype: torch.dtype, log_scales: list[float], seed: int) -> None:
    """200 draws of each of four chains; the far ones start 1e4 to 1e7 nats below the posterior."""
    assert_each_chain_is_right(draws(HMC(compile=False), dtype, log_scales, seed))


@pytest.mark.statistical
@pytest.mark.parametrize("adapt_mass", ["diagonal", "dense"])
def test_every_chain_of_nuts_arrives(adapt_mass: Literal["diagonal", "dense"]) -> None:
    """200 draws of each of three chains, two of which start far away."""
    kernel = NUTS(adapt_mass=adapt_mass, compile=False)
    assert_each_chain_is_right(draws(kernel, torch.float64, [-6.0, -0.9, -8.0], 0))


@pytest.mark.statistical
def test_every_chain_of_a_network_with_learned_noise_arrives() -> None:
    """A narrow deep network in single precision: all four chains move, at one log density within 5 of its deviations.

    The second starts with a noise scale of 0.002, where the log density is below -1e6.
    """
    torch.manual_seed(0)
    x = torch.linspace(-2.0, 2.0, 20).unsqueeze(-1)
    y = torch.sin(2.0 * x) + 0.3 * torch.randn(20, 1)
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(dist.HalfCauchy(0.3)), dist.Normal(0.0, 1.0), num_data=20)
    starts = [{"likelihood.scale": torch.tensor(scale)} for scale in (0.5, 0.002, 0.3, 1.0)]
    kernel = HMC(num_leapfrog=12, compile=False)
    chains = pb.sample(
        model,
        (x, y),
        kernel=kernel,
        init=starts,
        num_chains=4,
        num_samples=100,
        warmup_steps=150,
        seed=0,
        progress=False,
    )
    assert (chains.stats["acceptance_rate"].mean(1) > 0.5).all()
    density = chains.stats["lp"]
    assert float(density.median(1).values.max() - density.median(1).values.min()) < 5 * float(density.std(1).median())


def test_a_warmup_too_short_to_arrive_is_told() -> None:
    with pytest.warns(
        UserWarning, match="HMC: chain 1 (did not move|had not reached the others' region).*warmup_steps"
    ):
        draws(HMC(compile=False), torch.float64, [-0.9, -8.0, -1.0], 0, num_samples=50, warmup_steps=10)
