"""The joint Gaussian of several blocks and points."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import Tensor

from pyrobnn.curvature import BlockGaussian, DenseBlock, DiagonalBlock
from tests.conformance.monte_carlo import Z, z_of_mean


def mixed() -> tuple[BlockGaussian, Tensor]:
    """Elements 3 and 0 coupled, 2 and 5 independent, 1 and 4 points; and the covariance."""
    torch.manual_seed(0)
    loc, root = torch.randn(6).double(), torch.randn(2, 2).double()
    dense, diagonal = DenseBlock(torch.tensor([3, 0]), loc), DiagonalBlock(torch.tensor([2, 5]), loc)
    dense.set(root @ root.T, torch.tensor([1.0, 2.0]).double())
    diagonal.set(torch.tensor([3.0, 0.5]).double(), torch.tensor([1.0, 1.0]).double())
    covariance = torch.zeros(6, 6).double()
    covariance[[[3], [0]], [[3, 0]]] = torch.linalg.inv(root @ root.T + torch.diag(torch.tensor([1.0, 2.0]).double()))
    covariance[[2, 5], [2, 5]] = torch.tensor([1 / 4, 1 / 1.5]).double()
    return BlockGaussian(loc, [dense, diagonal]), covariance


def test_moments_and_images() -> None:
    gaussian, covariance = mixed()
    torch.testing.assert_close(gaussian.variance, covariance.diagonal())
    columns = torch.tensor([0, 2, 3, 5])
    rows = torch.randn(7, 3, 4).double()
    expected = rows @ covariance[columns][:, columns] @ rows.mT
    torch.testing.assert_close(gaussian.image_covariance(rows, columns), expected)


def test_density_of_the_elements_in_blocks() -> None:
    gaussian, covariance = mixed()
    chosen = [0, 2, 3, 5]
    expected = torch.distributions.MultivariateNormal(gaussian.loc[chosen], covariance[chosen][:, chosen])
    value = torch.randn(4, 6).double()
    torch.testing.assert_close(gaussian.log_prob(value), expected.log_prob(value[:, chosen]))


@pytest.mark.statistical
def test_draws() -> None:
    """10 000 draws; z-scores below 5; points stand still."""
    gaussian, covariance = mixed()
    pyro.set_rng_seed(1)
    draws = gaussian.rsample((100, 100)).reshape(-1, 6)
    assert bool((draws[:, [1, 4]] == gaussian.loc[[1, 4]]).all())
    centered = draws - gaussian.loc
    assert z_of_mean(draws, gaussian.loc) < Z
    assert z_of_mean(centered.unsqueeze(-1) * centered.unsqueeze(-2), covariance) < Z
    assert gaussian.rsample().shape == (6,)
