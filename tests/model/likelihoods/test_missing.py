"""Missing values of a distribution."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyrobnn.model.likelihoods.missing import MissingTargets


@pytest.mark.usefixtures("validated")
def test_a_missing_value_leaves_all_else_alone() -> None:
    """Also where the density at the placeholder is far from the value's, and NaN would be refused."""
    rate = torch.tensor([2.0, 3.0, 4.0], requires_grad=True)
    base = dist.Gamma(2.0, rate)
    found = MissingTargets(base, placeholder=1.0)
    value = torch.tensor([0.5, math.nan, 7.0])
    score = found.log_prob(value)
    torch.testing.assert_close(score[[0, 2]], base.log_prob(torch.tensor([0.5, 1.0, 7.0]))[[0, 2]])
    assert score[1] == 0.0
    score.sum().backward()
    assert rate.grad is not None and rate.grad[1] == 0.0 and bool(rate.grad.isfinite().all())
    assert torch.equal(found.mean, base.mean) and torch.equal(found.variance, base.variance)
    wide = found.expand((2, 3)).to_event(1)
    torch.testing.assert_close(wide.log_prob(value.expand(2, 3)), score.sum().expand(2))
    assert wide.sample().isfinite().all() and found.support is base.support


def test_events_are_missing_as_a_whole_or_not_at_all() -> None:
    with pytest.raises(ValueError, match=r"missing: targets can be missing one by one; MultivariateNormal .*\(2,\)"):
        MissingTargets(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), 0.0)
