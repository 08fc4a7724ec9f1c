"""Blocks against the matrices they stand for."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch import Tensor

from pyrobnn.curvature import Block, DenseBlock, DiagonalBlock, KroneckerBlock
from tests.conformance.monte_carlo import Z, z_of_mean

LIKE = torch.zeros(1, dtype=torch.float64)


def positive(size: int) -> Tensor:
    root = torch.randn(size, size).double()
    return root @ root.T


def case(kind: str) -> tuple[Block, Tensor, Tensor]:
    """A block of six weights, its curvature ``[6, 6]`` and its prior precision ``[6]``."""
    torch.manual_seed(5)
    precision = torch.rand(6).double() + 0.2
    if kind == "diagonal":
        curvature = torch.rand(6).double()
        block: Block = DiagonalBlock(torch.arange(6), LIKE)
        block.set(curvature, precision)
        return block, curvature.diag(), precision
    if kind == "dense":
        curvature = positive(6)
        block = DenseBlock(torch.arange(6), LIKE)
        block.set(curvature, precision)
        return block, curvature, precision
    precision = precision[:3].repeat(2)  # by input, the same for both outputs
    out, inputs = positive(2), positive(3)
    block = KroneckerBlock(torch.arange(6).reshape(2, 3), LIKE)
    block.set(out, inputs, precision)
    return block, torch.kron(out, inputs), precision


KINDS = ["diagonal", "dense", "kronecker"]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_multiplier = pytest.mark.parametrize("multiplier", [1.0, 0.03, 20.0])


@each_kind
@each_multiplier
def test_it_is_the_gaussian_of_the_summed_precision(kind: str, multiplier: float) -> None:
    block, curvature, precision = case(kind)
    block.multiplier.fill_(multiplier)
    whole = curvature + multiplier * precision.diag()
    covariance = torch.linalg.inv(whole)
    torch.testing.assert_close(block.variances(), covariance.diagonal())
    torch.testing.assert_close(block.log_det(), torch.logdet(whole))
    rows = torch.randn(4, 2, 6).double()
    half = block.half_covariance(rows)
    torch.testing.assert_close(half @ half.mT, rows @ covariance @ rows.mT)
    normal = torch.distributions.MultivariateNormal(torch.zeros(6).double(), precision_matrix=whole)
    points = torch.randn(4, 6).double()
    torch.testing.assert_close(block.log_prob(points), normal.log_prob(points))


@pytest.mark.statistical
@each_kind
def test_draws_have_its_covariance(kind: str) -> None:
    """20 000 draws; z-scores below 5."""
    block, curvature, precision = case(kind)
    pyro.set_rng_seed(6)
    draws = block.deviations(20_000)
    covariance = torch.linalg.inv(curvature + precision.diag())
    assert z_of_mean(draws, torch.zeros(6).double()) < Z
    assert z_of_mean(draws.unsqueeze(-1) * draws.unsqueeze(-2), covariance) < Z


@each_kind
def test_what_it_adds_to_the_evidence(kind: str) -> None:
    block, curvature, precision = case(kind)
    weights, multipliers = torch.randn(6).double(), torch.tensor([0.5, 1.0, 3.0]).double()
    block.prior_squares.fill_(float((precision * weights.square()).sum()))
    block.log_prior.fill_(float(torch.distributions.Normal(0.0, precision.rsqrt()).log_prob(weights).sum()))
    for multiplier, found in zip(multipliers, block.log_evidence_at(multipliers, block.spectrum()), strict=True):
        prior = torch.distributions.Normal(0.0, (multiplier * precision).rsqrt()).log_prob(weights).sum()
        log_det = torch.logdet(curvature + multiplier * precision.diag())
        torch.testing.assert_close(found, prior + 3 * math.log(2 * math.pi) - 0.5 * log_det)
        block.multiplier.fill_(multiplier)
        torch.testing.assert_close(block.log_evidence(), found)


def test_priors_that_differ_by_output_are_no_kronecker_product() -> None:
    block = KroneckerBlock(torch.arange(6).reshape(2, 3), LIKE)
    with pytest.raises(ValueError, match="different scales for different output units"):
        block.set(positive(2), positive(3), torch.rand(6).double())
