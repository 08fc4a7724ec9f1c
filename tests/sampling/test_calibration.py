"""Simulation-based calibration of samplers on a network: HMC passes, a sampler that is wrong on purpose fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.diagnostics import SimulationBasedCalibration
from pyrobnn.guides import Chains
from pyrobnn.sampling import HMC, ChainResult


@dataclass(frozen=True)
class Quartered(HMC):
    """HMC whose draws are moved toward the mean of their chain: a posterior of a quarter of the width."""

    def run(self, *args: Any, **options: Any) -> ChainResult:
        result = super().run(*args, **options)
        mean = result.draws.mean(1, keepdim=True)
        return ChainResult(mean + 0.25 * (result.draws - mean), result.stats)


def calibration(kernel: type[HMC], num_simulations: int) -> SimulationBasedCalibration:
    """Data sets from a network of seven weights and their posteriors: 19 draws spread over 40 transitions."""
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 8).unsqueeze(-1).double()
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=8).double()
    settings = kernel(step_size=0.1, num_leapfrog=6, compile=False)
    short = {"num_samples": 40, "warmup_steps": 60, "init": "prior", "progress": False}

    def infer(model: Any, data: Any) -> Chains:
        return pb.sample(model, data, kernel=settings, **short)

    return pb.sbc(model, infer, num_simulations, inputs=x, num_samples=19, num_bins=5, seed=0, progress=False)


@pytest.mark.statistical
def test_hmc_passes() -> None:
    """60 simulations, χ² over five bins of each quantity; a correct sampler fails with probability 0.01."""
    assert calibration(HMC, 60).passed()


@pytest.mark.statistical
def test_a_broken_sampler_fails() -> None:
    """The test is able to fail: a quarter of the width is found at once."""
    found = calibration(Quartered, 30)
    assert found.p_value < 1e-4
    assert "too narrow" in str(found)
