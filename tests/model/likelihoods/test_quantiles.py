"""Quantiles of mixtures by a fixed number of operators, against those by bisection to the last digit."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrobnn.distributions.with_cdf import Poisson
from pyrobnn.model.likelihoods.quantiles import bracketed_quantile, mixture_quantile

LEVELS = (1e-3, 0.05, 0.5, 0.9, 0.999)


def moments(each: dist.TorchDistribution) -> tuple[Tensor, Tensor]:
    """Mean and variance of the mixture over the first dimension."""
    return each.mean.mean(0), each.variance.mean(0) + each.mean.var(0, correction=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_a_mixture_of_normals(dtype: torch.dtype, tolerance: float) -> None:
    """Narrow and wide, near and far from each other; single precision ends at that of its cdf, 1e-7 of 1e-3."""
    loc = torch.tensor([[0.0, -5.0], [0.1, 30.0], [0.2, 31.0]], dtype=torch.float64)
    scale = torch.tensor([[1.0, 0.2], [2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    each = dist.Normal(loc, scale)
    expected = mixture_quantile(each, torch.tensor(LEVELS, dtype=torch.float64), 0.0)
    given = dist.Normal(loc.to(dtype), scale.to(dtype))
    found = bracketed_quantile(given, LEVELS, 0.0, *moments(given))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(moments(each)[1].max().sqrt()))


def test_one_normal_has_its_own_quantiles() -> None:
    each = dist.Normal(torch.tensor([[3.0]], dtype=torch.float64), 2.0)
    found = bracketed_quantile(each, (0.975,), 0.0, *moments(each))
    assert float(found) == pytest.approx(3.0 + 2.0 * 1.959963984540054, abs=1e-10)


def test_counts_have_whole_quantiles() -> None:
    each = Poisson(torch.tensor([[0.3, 40.0], [2.0, 60.0]], dtype=torch.float64).log())
    found = bracketed_quantile(each, LEVELS, 0.0, *moments(each))
    torch.testing.assert_close(
        found, mixture_quantile(each, torch.tensor(LEVELS, dtype=torch.float64), 0.0), rtol=0, atol=0
    )
