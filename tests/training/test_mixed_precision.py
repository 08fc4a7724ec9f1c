"""Training under bfloat16 autocast, checkpointed or compiled, has the gradients of training in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pyrobnn as pb
from pyrobnn.guides import MAP, DeltaMixture, MeanField
from pyrobnn.guides.base import Guide

_NOISE = torch.Generator().manual_seed(0)
X = torch.randn(64, 4, generator=_NOISE)
Y = X @ torch.randn(4, 1, generator=_NOISE) + 0.3 * torch.randn(64, 1, generator=_NOISE)
SEEDS = 30
GUIDES: dict[str, Callable[[Any], Guide]] = {
    "MeanField": MeanField,
    "MAP": MAP,
    "DeltaMixture": lambda model: DeltaMixture(model, 3),
}


class Net(nn.Module):
    def __init__(self, recomputes: bool = False) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        self.recomputes = recomputes

    def part(self, h: Tensor) -> Tensor:
        return torch.tanh(self.inner(torch.tanh(h)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(checkpoint(self.part, h, use_reentrant=False) if self.recomputes else self.part(h))


class Keeping(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.kept = torch.cat([p.grad.reshape(-1) for p in self.param_groups[0]["params"] if p.grad is not None])


def gradients(guide: str, wrap: Callable[[nn.Module], Any] = lambda net: net, recomputes: bool = False) -> Tensor:
    """Gradients ``[SEEDS, d]`` of single steps, each with draws of its own."""
    torch.manual_seed(0)
    net = wrap(Net(recomputes))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=64)
    posterior = GUIDES[guide](model)
    optimizer = Keeping(posterior.parameters(), lr=0.0)
    found = []
    for seed in range(SEEDS if guide == "MeanField" else 1):
        pb.fit(model, posterior, [(X, Y)], epochs=1, optimizer=optimizer, seed=seed, progress=False)
        assert optimizer.kept.dtype == torch.float32
        found.append(optimizer.kept.clone())
    return torch.stack(found)


@pytest.mark.parametrize("guide", GUIDES)
def test_autocast_rounds_gradients_without_a_bias(guide: str) -> None:
    """A product in bfloat16 has 8 bits: with the same draws gradients differ by 2 % at most, their mean by less.

    Of mean field, 30 draws: the difference of the means is below 4 standard errors of the mean gradient itself.
    """
    expected = gradients(guide)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(guide)
    difference = found - expected
    assert 1e-5 < float(difference.norm() / expected.norm()) < 0.02
    assert float(difference.mean(0).norm() / expected.mean(0).norm()) < 0.01
    if len(expected) > 1:
        error = (expected.var(0) / SEEDS).sqrt()
        assert float((difference.mean(0) / error).abs().max()) < 4.0


@pytest.mark.parametrize("guide", GUIDES)
def test_checkpointed_activations_change_nothing(guide: str) -> None:
    torch.testing.assert_close(gradients(guide, recomputes=True), gradients(guide), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which Dynamo reads of the draws
@pytest.mark.parametrize("guide", ["MeanField", "MAP"])
def test_a_compiled_network_changes_nothing(guide: str) -> None:
    found = gradients(guide, lambda net: torch.compile(net, backend="eager"))
    torch.testing.assert_close(found, gradients(guide), rtol=1e-5, atol=1e-5)
