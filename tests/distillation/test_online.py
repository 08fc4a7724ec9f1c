"""Distillation while a sampler runs: what it trains on, what it finds, refusals."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrobnn as pb
from pyrobnn.distillation import online_distill
from pyrobnn.distillation.standardization import Standards
from pyrobnn.distillation.wgan import WGAN
from pyrobnn.sampling import HMC, SGLD
from tests.conformance.comparisons import assert_same_state, network_state
from tests.distillation.test_offline import distances, regression


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(24, 3, generator=generator)
    return x, x.sum(1, keepdim=True) + 0.5 * torch.randn(24, 1, generator=generator)


quick_online = functools.partial(
    online_distill,
    kernel=SGLD(2e-3),
    num_samples=60,
    warmup_steps=20,
    num_chains=2,
    buffer_size=80,
    refresh=5,
    hidden=(8,),
    critic_hidden=(8,),
    latent_dim=2,
    steps=12,
    batch_size=20,
    seed=0,
    progress=False,
)


def test_online_trains_on_a_buffer_of_the_latest_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 40 draws of two chains, refreshed by 5: five bouts of the 12 steps, on the rows of pb.sample.

    Those of the first window standardize all.
    """
    seen: list[tuple[int, Tensor]] = []
    play = WGAN.train

    def spy(self: WGAN, batch: Any, steps: int) -> None:
        seen.append((steps, torch.cat([batch() for _ in range(40)])))
        play(self, batch, steps)

    monkeypatch.setattr(WGAN, "train", spy)
    model = regression()
    before = network_state(model)
    generator = quick_online(model, data())
    assert_same_state(network_state(model), before)
    assert [steps for steps, _ in seen] == [2, 2, 3, 2, 3]
    assert len(generator.history.critic) == 12
    assert generator.num_samples == 120
    whole = pb.sample(
        model, data(), kernel=SGLD(2e-3), num_samples=40, warmup_steps=20, num_chains=2, seed=0, progress=False
    )
    rows = whole.flat_draws(torch.arange(80))
    rows = Standards.of(iter([rows]), whole)(rows)
    assert bool((distances(seen[0][1], rows).min(1).values < 1e-5).all())
    # The last window has lost the first draws.
    assert float(distances(seen[-1][1], rows[[0, 40]]).min()) > 1e-3


@pytest.mark.statistical
def test_online_finds_the_means_of_the_posterior() -> None:
    """Against least squares with the prior's pull, within half a posterior standard deviation: 400 correlated draws."""
    model, (x, y) = regression(), data()
    generator = quick_online(model, (x, y), num_samples=250, thinning=4, buffer_size=400, warmup_steps=200)
    features = torch.cat([x, torch.ones(24, 1)], 1)
    precision = features.T @ features / 0.25 + torch.eye(4)
    mean, scale = (
        torch.linalg.solve(precision, features.T @ y / 0.25).squeeze(-1),
        precision.inverse().diagonal().sqrt(),
    )
    torch.manual_seed(0)
    made = generator.flat(5000).detach()
    assert float(((made.mean(0) - mean) / scale).abs().max()) < 0.5
    assert 0.6 < float((made.std(0) / scale).min()) < float((made.std(0) / scale).max()) < 1.6


def test_online_refusals() -> None:
    model = regression()
    for options, message in (
        ({"num_samples": 39}, "num_samples: 39 draws of each of 2 chains do not fill a buffer of 80"),
        ({"batch_size": 81}, "buffer_size: it holds 80 draws, fewer than the 81 of a batch"),
        ({"refresh": 0}, "refresh: expected a positive int"),
    ):
        with pytest.raises(ValueError, match=message):
            quick_online(model, data(), **options)
    with pytest.raises(TypeError, match="kernel: expected a stochastic gradient one"):
        quick_online(model, data(), kernel=HMC())
    with pytest.raises(TypeError, match="color"):
        quick_online(model, data(), color="red")
