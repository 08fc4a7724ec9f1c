"""Event dimensions are taken off, however they were put on."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyrobnn.distributions.independent import base_distribution


def test_all_levels_are_taken_off() -> None:
    normal = dist.Normal(torch.zeros(2, 3), 1.0)
    for wrapped in (normal, normal.to_event(1), normal.to_event(2), normal.to_event(1).to_event(1)):
        base = base_distribution(wrapped)
        assert type(base) is dist.Normal and base.batch_shape == (2, 3) and base.event_shape == ()
    foreign = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 1.0), 1)
    assert type(base_distribution(foreign)) is torch.distributions.Normal


def test_other_wrappers_stay() -> None:
    transformed = dist.LogNormal(torch.zeros(3), 1.0)
    assert base_distribution(transformed) is transformed
    assert base_distribution(transformed.to_event(1)) is transformed
