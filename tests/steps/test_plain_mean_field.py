"""The plain mean-field step computes what the step with a backward pass of its own does."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(0.0, 1.0),
        dist.Normal(0.3, 2.0),
        [("0.weight", dist.Normal(torch.zeros(3), torch.tensor([0.5, 1.0, 2.0]))), ("*", dist.Laplace(0.0, 1.0))],
    ],
)
def test_values_and_gradients_in_double_precision(prior: object) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.5), prior, num_data=30)
    guide = pb.guides.MeanField(model, antithetic=False)
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randn(10, 1, dtype=torch.float64)
    noise = torch.randn(guide.layout.size, dtype=torch.float64)
    elbo, found = pb.objectives.ELBO(temperature=0.7), []
    for sequential in (True, False):
        step = guide.step(model, sequential=sequential)
        draws = step.draw(0, noise)
        with draws.running(model, update=True):
            model(x, y)
        guide.zero_grad()
        torch.manual_seed(1)
        parts = elbo.backward(model, step, (x, y))
        found.append((parts.divergence.detach(), guide.flat_loc.grad.clone(), guide.flat_log_scale.grad.clone()))
    for right, left in zip(*found, strict=True):
        torch.testing.assert_close(right, left, rtol=1e-12, atol=1e-12)


def test_it_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    model = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=4)
    guide = pb.guides.MeanField(model)
    loss = pb.objectives.ELBO().differentiable_loss(model, guide, torch.randn(4, 2), torch.randn(4, 1))
    (slope,) = torch.autograd.grad(loss, guide.flat_loc, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), guide.flat_loc)
    assert bool((curve > 0.0).all())
