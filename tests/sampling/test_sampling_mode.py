"""The state in which a model is sampled, and that it comes back."""

from __future__ import annotations

from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrobnn import likelihoods, priors
from pyrobnn.checkpoint import load, save
from pyrobnn.guides import MAP
from pyrobnn.model.layout import Layout
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling import NonFiniteLossError
from pyrobnn.training import fit
from tests.conformance.comparisons import assert_same_state, network_state
from tests.sampling.models import classifier, loader, normed, quick


def test_nothing_in_the_model_changes() -> None:
    model = classifier(normed())
    fit(model, MAP(model), loader(), epochs=2, progress=False)
    model.train()
    model.net.network[0].eval()
    before = network_state(model)
    for parameter in model.parameters():
        parameter.grad = None
    guide = quick(model, loader(), batch_norm="freeze", num_chains=2)
    assert_same_state(network_state(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    statistics = guide.sample(2).buffers["net.net.1.running_mean"]
    assert torch.equal(statistics, model.net.network[1].running_mean.expand(2, 4))


def test_the_state_comes_back_after_an_error() -> None:
    model = classifier()
    before = network_state(model)
    with pytest.raises(NonFiniteLossError):
        quick(model, init={"net.0.bias": torch.full((4,), 3e38)})  # finite, but not what the layer adds up to
    assert_same_state(network_state(model), before)


def test_batch_norm_is_refused_unless_frozen() -> None:
    with pytest.raises(ValueError, match=r"batch_norm: the layer 'net.net.1'.*batch_norm='freeze'"):
        quick(classifier(normed()))
    untracked = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="has no running statistics"):
        quick(classifier(untracked), batch_norm="freeze")
    with pytest.raises(ValueError, match="batch_norm: expected 'refuse' or 'freeze'"):
        quick(classifier(), batch_norm="off")


def test_dropout_is_off() -> None:
    """The gradient is the same at each evaluation, and the network's without dropout."""
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    dropping = nn.Sequential(plain[0], nn.Dropout(0.9), plain[1], plain[2])
    found = [quick(classifier(net).train()).blocks[0] for net in (plain, dropping)]
    assert torch.equal(*found)


def test_a_prior_that_could_be_trained_is_a_constant(tmp_path: Path) -> None:
    """It keeps its value, and draws lie where every other guide of the model expects them."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    rules = [("0.*", priors.learned_scale()), ("*", dist.Normal(0.0, 1.0))]
    model = SupervisedModel(net, likelihoods.Categorical(), rules, num_data=24)
    before = network_state(model)
    guide = quick(model, loader(), num_chains=2)
    assert_same_state(network_state(model), before)
    places = [{name: site.window for name, site in layout.items()} for layout in (guide.layout, Layout.of(model))]
    assert places[0] == places[1]
    save(tmp_path, model, guide)
    assert torch.equal(load(tmp_path, net)[1].state_dict()["block_0"], guide.blocks[0])
