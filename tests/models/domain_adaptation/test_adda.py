"""ADDA: the source's network stays, the target's encoder moves, and a shift is undone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pyrobnn as pb
from models.domain_adaptation import adapt_encoder, domain_discriminator
from tests.models.domain_adaptation.test_adapt import blobs, problem


def test_only_the_targets_encoder_moves() -> None:
    model, guide, loader, target = problem()
    pb.fit(model, guide, loader, epochs=20, lr=0.02, seed=0, progress=False)
    before = copy.deepcopy(guide.state_dict())
    discriminator = domain_discriminator(8, 8)
    _, own, history = adapt_encoder(
        model, guide, loader, [target], discriminator, epochs=2, lr=0.01, seed=1, progress=False
    )
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    old, new = guide.sample(1), own.sample(1)
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {"net.0.weight", "net.0.bias"}
    assert {"discriminator.loss", "discriminator.real", "encoder.loss"} <= set(history.terms)


def test_a_shift_is_undone() -> None:
    """Clusters shifted by 1.3, of which the source's network gets a fifth wrong; the adapted one hardly any."""
    torch.manual_seed(0)
    x, y = blobs(120, 0.0, 1)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=120)
    guide = pb.guides.MAP(model)
    pb.fit(model, guide, [(x, y)], epochs=200, lr=0.05, seed=0, progress=False)
    shifted, labels = blobs(120, 1.3, 2)
    adapted, own, _ = adapt_encoder(
        model, guide, [(x, y)], [shifted], domain_discriminator(2, 32), epochs=300, lr=5e-3, seed=1, progress=False
    )
    rights = [
        float((pb.predict(*pair, shifted, num_samples=1).predicted == labels).float().mean())
        for pair in ((model, guide), (adapted, own))
    ]
    assert rights[0] < 0.85
    assert rights[1] > 0.95


def test_bad_input_is_refused_by_name() -> None:
    model, guide, loader, target = problem()
    with pytest.raises(TypeError, match="target: expected an UnlabeledLoader"):
        adapt_encoder(model, guide, loader, target, domain_discriminator(8), epochs=1)
    with pytest.raises(TypeError, match="model, guide"):
        adapt_encoder(model, nn.Linear(1, 1), loader, [target], domain_discriminator(8), epochs=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer: the network has no layer"):
        adapt_encoder(model, guide, loader, [target], domain_discriminator(8), epochs=1, layer="top", progress=False)
