"""Both metrics: momenta have the mass matrix for covariance, leapfrogs agree, and no step moves nothing."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrobnn.sampling.hmc.leapfrog import Leapfrogs
from pyrobnn.sampling.hmc.metric import DenseMetric, DiagonalMetric
from pyrobnn.sampling.hmc.potential import Potential

DIAGONAL = torch.tensor([0.5, 2.0, 0.1], dtype=torch.float64)
DENSE = torch.tensor([[0.5, 0.3, 0.0], [0.3, 2.0, -0.2], [0.0, -0.2, 0.1]], dtype=torch.float64)


def model() -> None:
    pyro.sample("z", dist.StudentT(3.0, torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))


def state(seed: int) -> tuple[Leapfrogs, tuple[Tensor, Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    q, p = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    leapfrogs = Leapfrogs(Potential(model), q, num_leapfrog=1, total=0, compile=False)
    value, gradient = leapfrogs.value_and_grad(q)
    return leapfrogs, (q, p, gradient, value)


@pytest.mark.parametrize("metric", [DiagonalMetric(DIAGONAL), DenseMetric(DENSE)], ids=["diagonal", "dense"])
def test_momenta_have_the_covariance_of_the_mass_matrix(metric: DiagonalMetric | DenseMetric) -> None:
    """The map from noise is linear: its square is the mass matrix, and energies are those of the noise."""
    factor = metric.momentum(torch.eye(3, dtype=torch.float64))  # row i: the momentum of unit noise i
    mass = torch.diag(1.0 / DIAGONAL) if metric.inverse_mass.dim() == 1 else torch.linalg.inv(DENSE)
    torch.testing.assert_close(factor.T @ factor, mass)
    torch.testing.assert_close(metric.velocity(mass), torch.eye(3, dtype=torch.float64))
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(metric.kinetic(metric.momentum(noise)), 0.5 * noise.square().sum(-1))


def test_a_dense_matrix_that_is_diagonal_moves_alike() -> None:
    leapfrogs, start = state(1)
    steps = torch.tensor([[0.3], [-0.2], [0.0], [0.7]], dtype=torch.float64)
    one = DiagonalMetric(DIAGONAL).leapfrog(leapfrogs, start, steps)
    other = DenseMetric(torch.diag(DIAGONAL)).leapfrog(leapfrogs, start, steps)
    for a, b, before in zip(one, other, start, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a[2], before[2])


def test_dense_leapfrogs_run_backward() -> None:
    leapfrogs, start = state(2)
    metric, steps = DenseMetric(DENSE), torch.full((4, 1), 0.4, dtype=torch.float64)
    there = metric.leapfrog(leapfrogs, start, steps)
    back = metric.leapfrog(leapfrogs, there, -steps)
    assert float((there[0] - start[0]).abs().min()) > 1e-3
    for a, b in zip(back, start, strict=True):
        torch.testing.assert_close(a, b)
