"""Gradient steps over several batches: the gradient is that of their union, however many rows each has."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, MeanField
from pyrobnn.guides.base import Guide
from pyrobnn.objectives import ELBO
from pyrobnn.training import Player

_NOISE = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 3, generator=_NOISE), torch.randn(24, 1, generator=_NOISE)
UNEVEN = [(X[:9], Y[:9]), (X[9:12], Y[9:12]), (X[12:22], Y[12:22]), (X[22:], Y[22:])]
HALVES = [(X[:12], Y[:12]), (X[12:], Y[12:])]


def built() -> pb.SupervisedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    return pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=24)


class Keeping(torch.optim.SGD):
    """Plain SGD that keeps its gradients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: list[Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [p.grad.reshape(-1) for p in self.param_groups[0]["params"] if p.grad is not None]
        self.kept.append(torch.cat(gradients))
        super().step()


def gradients(guide: type[Guide], batches: Any, seed: int = 0, **options: Any) -> tuple[Tensor, pb.History]:
    """Gradients by step ``[steps, d]``."""
    model = built()
    posterior: Any = guide(model)
    optimizer = Keeping(posterior.parameters(), lr=options.pop("lr", 0.01))
    history = pb.fit(model, posterior, batches, optimizer=optimizer, seed=seed, progress=False, **options)
    return torch.stack(optimizer.kept), history


def test_uneven_batches_give_the_gradients_of_their_union() -> None:
    found, history = gradients(MAP, UNEVEN, epochs=3, accumulate=2)
    expected, whole = gradients(MAP, HALVES, epochs=3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert history.steps == whole.steps == 6
    assert history.elbo == pytest.approx(whole.elbo, rel=1e-5)


def test_what_is_left_at_the_end_of_an_epoch_is_a_step() -> None:
    found, history = gradients(MAP, UNEVEN, epochs=2, accumulate=3)
    assert history.steps == 2 * 2
    assert len(found) == 4


@pytest.mark.statistical
def test_mean_field_gradients_have_the_expectation_of_the_union() -> None:
    """50 seeds; the largest z-score of 62 numbers stays below 4."""
    found = torch.stack([gradients(MeanField, UNEVEN, s, lr=0.0, epochs=1, accumulate=4)[0][0] for s in range(50)])
    whole = torch.stack([gradients(MeanField, [(X, Y)], 900 + s, lr=0.0, epochs=1)[0][0] for s in range(50)])
    error = ((found.var(0) + whole.var(0)) / 50).sqrt()
    assert float(((found.mean(0) - whole.mean(0)) / error).abs().max()) < 4.0
    assert float(found.var(0).sum()) < float(whole.var(0).sum())


def test_weights_of_terms_advance_with_gradient_steps() -> None:
    elbo = ELBO(temperature=lambda step: 0.1 * (1 + step))
    _, history = gradients(MAP, UNEVEN, epochs=2, accumulate=2, elbo=elbo)
    assert elbo.num_steps == 4
    assert history.terms["temperature"] == pytest.approx([0.2, 0.4])


def test_a_run_is_resumed_bit_for_bit(tmp_path: Any) -> None:
    def trained(**options: Any) -> Tensor:
        model = built()
        guide = MeanField(model)
        pb.fit(model, guide, UNEVEN, accumulate=2, progress=False, seed=1, **options)
        return guide.flat_loc.detach()

    whole = trained(epochs=4)
    trained(epochs=2, checkpoint=tmp_path)
    assert torch.equal(trained(epochs=4, checkpoint=tmp_path, resume=True), whole)


def test_what_cannot_be_joined_is_refused() -> None:
    model = built()
    guide, player = MAP(model), Player("p", ELBO(), nn.Linear(1, 1))
    with pytest.raises(TypeError, match="accumulate: players take their steps on every batch"):
        pb.fit(model, guide, UNEVEN, epochs=1, accumulate=2, players=[player])
    with pytest.raises(ValueError, match="accumulate: expected a positive int, got 0"):
        pb.fit(model, guide, UNEVEN, epochs=1, accumulate=0)
