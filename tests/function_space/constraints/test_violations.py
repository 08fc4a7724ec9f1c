"""Rates of violations against a Gaussian's, and refusals."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.function_space import Bounds, Monotone, violations
from pyrobnn.guides import MeanField


def linear() -> tuple[pb.SupervisedModel, MeanField]:
    """A slope with mean 0.5 and standard deviation 0.4."""
    model = pb.SupervisedModel(
        nn.Linear(1, 1, bias=False), pb.likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=5
    )
    return model, MeanField(model, init={"net.weight": torch.full((1, 1), 0.5)}, init_scale=0.4)


@pytest.mark.statistical
def test_the_rate_is_the_gaussians() -> None:
    """4,000 draws: P(slope < 0) = Φ(-1.25) to four standard errors, and the mean of its negative part."""
    model, guide = linear()
    x = torch.ones(3, 1)
    found = violations(model, guide, Monotone(0, x), x, 4000, seed=0)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = float(normal.cdf(torch.tensor(-1.25)))
    assert abs(found.rate - expected) < 4 * found.rate_error
    assert found.rate_error == pytest.approx((expected * (1 - expected) / 4000) ** 0.5, rel=0.1)
    size = 0.4 * float(normal.log_prob(torch.tensor(1.25)).exp()) - 0.5 * expected
    assert found.size == pytest.approx(size, abs=4 * 0.4 / 4000**0.5)
    torch.testing.assert_close(found.by_input, torch.full((3,), found.rate, dtype=torch.float64))
    assert "violated at a rate of 0.09" in str(found)


def test_the_seed_fixes_the_draws_and_leaves_the_random_state_alone() -> None:
    model, guide = linear()
    state = torch.get_rng_state()
    first, again = (
        violations(model, guide, Bounds(0.0, None, torch.ones(1, 1)), torch.ones(2, 1), 5, seed=3) for _ in range(2)
    )
    assert torch.equal(first.values, again.values)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in guide.parameters())


def test_wrong_arguments_are_refused() -> None:
    model, guide = linear()
    x = torch.ones(1, 1)
    with pytest.raises(TypeError, match="constraint: expected one of"):
        violations(model, guide, "monotone", x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="guide: expected a guide"):
        violations(model, dict(guide.sample(2)), Monotone(0, x), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples"):
        violations(model, guide, Monotone(0, x), x, 0)
    with pytest.raises(ValueError, match="inputs: there are none"):
        violations(model, guide, Monotone(0, x), x[:0])
