"""Members' buffers: which they are, whose they are while a member runs, and what is kept."""

from __future__ import annotations

import copy

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrobnn import likelihoods
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.steps.member_buffers import MemberBuffers, network_buffers

NAMES = ["net.net.1.running_mean", "net.net.1.running_var", "net.net.1.num_batches_tracked"]


def model_of() -> SupervisedModel:
    """A model with running statistics, a buffer that is not saved, and a constant of the likelihood."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    net.register_buffer("scratch", torch.zeros(1), persistent=False)
    return SupervisedModel(net, likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=8)


def test_which_buffers() -> None:
    model = model_of()
    assert list(network_buffers(model)) == NAMES
    assert list(network_buffers(model.net)) == [name.removeprefix("net.") for name in NAMES]
    assert network_buffers(lambda: None) == {}
    own = MemberBuffers(model, 4)
    assert len(own) == 3
    assert {name: tuple(value.shape) for name, value in own.state_dict().items()} == {
        "net/net/1/running_mean": (4, 2),
        "net/net/1/running_var": (4, 2),
        "net/net/1/num_batches_tracked": (4,),
    }


def draw_of(own: MemberBuffers, member: int, keep: bool) -> Draws:
    """A draw of no site with a member's buffers, which keep what is written into them or not."""
    return Draws({}, own.rows(member) if keep else own.copies(member), live=keep)


@pytest.mark.parametrize("keep", [True, False])
def test_a_member_runs_with_its_own(keep: bool) -> None:
    model = model_of().train()
    own = MemberBuffers(model, 3)
    own.write(1, {NAMES[0]: torch.full((2,), 4.0)})
    before = copy.deepcopy(own.stacked(torch.arange(3)))
    norm = model.net.network[1]
    theirs = norm.running_mean
    with draw_of(own, 1, keep).running(model, update=True):
        assert norm.running_mean.tolist() == [4.0, 4.0]
        model(torch.randn(5, 3))
    assert norm.running_mean is theirs
    assert theirs.tolist() == [0.0, 0.0]
    after = own.stacked(torch.arange(3))
    for name in NAMES:
        assert torch.equal(after[name][1], before[name][1]) != keep
        assert torch.equal(after[name][[0, 2]], before[name][[0, 2]])


@pytest.mark.parametrize("freeze", [True, False])
def test_other_buffers_are_the_models(freeze: bool) -> None:
    model = model_of()
    own = MemberBuffers(model, 2)
    with draw_of(own, 0, keep=True).running(model, update=not freeze):
        model.net.network.scratch.add_(1.0)
    assert float(model.net.network.scratch) == (0.0 if freeze else 1.0)


def test_graphs_outlive_what_other_members_write() -> None:
    """Two members' runs are differentiated together, though the second wrote into the same storage."""
    model = model_of()
    own = MemberBuffers(model, 2)
    norm = model.net.network[1].train()
    x = torch.randn(5, 2, requires_grad=True)
    total = torch.zeros(())
    for member in range(2):
        with draw_of(own, member, keep=True).running(model, update=True):
            total = total + norm(x).square().sum()
    total.backward()
    assert x.grad is not None


def test_a_copy_serves_its_own_model() -> None:
    model = model_of()
    own = MemberBuffers(model, 2)
    with draw_of(own, 0, keep=True).running(model, update=False):
        pass
    model_copy, own_copy = copy.deepcopy((model, own))
    model_copy.train()
    with draw_of(own_copy, 0, keep=True).running(model_copy, update=False):
        model_copy(torch.randn(5, 3))
    assert own_copy.stacked(torch.tensor([0]))[NAMES[2]].tolist() == [1]
    assert own.stacked(torch.tensor([0]))[NAMES[2]].tolist() == [0]
