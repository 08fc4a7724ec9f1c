"""Draws with buffers: indexing keeps them together, and a model works on copies of them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.prediction import PinnedDraws


def draws() -> Draws:
    """Five draws, their buffers numbered alike."""
    return Draws({"w": torch.arange(5.0)}, {"1.running_mean": torch.arange(5.0).unsqueeze(1).expand(5, 3).clone()})


def test_indexing_keeps_values_and_buffers_together() -> None:
    for index in (2, slice(1, 3), torch.tensor([4, 0])):
        chosen = draws().at(index)
        assert torch.equal(chosen["w"], torch.arange(5.0)[index])
        assert torch.equal(chosen.buffers["1.running_mean"][..., 0], torch.arange(5.0)[index])


@pytest.mark.parametrize("start", [0, 3, 5])
def test_one_by_one_they_are_what_their_indices_give(start: int) -> None:
    several = draws()
    several.component = torch.arange(5)
    found = list(several.each(start))
    assert len(found) == 5 - start
    for index, one in enumerate(found, start):
        wanted = several.at(index)
        for name in wanted:
            assert torch.equal(one[name], wanted[name])
        assert torch.equal(one.buffers["1.running_mean"], wanted.buffers["1.running_mean"])
        assert int(one.component) == index  # type: ignore[arg-type]
    assert [len(one) for one in Draws({"w": torch.zeros(2, 3), "b": torch.zeros(2)}).each()] == [2, 2]


def test_plain_draws_have_no_buffers() -> None:
    plain = {"w": torch.zeros(3)}
    assert Draws.of(plain) == plain
    assert Draws.of(plain).buffers == {}
    ours = draws()
    assert Draws.of(ours) is ours


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))], ids=["copy", "pickle"])
def test_copies_keep_buffers(duplicate: object) -> None:
    again = duplicate(draws())  # type: ignore[operator]
    assert torch.equal(again["w"], draws()["w"])
    assert torch.equal(again.buffers["1.running_mean"], draws().buffers["1.running_mean"])


def test_thinning_keeps_buffers() -> None:
    (chunk,) = PinnedDraws(draws(), 3, 1)
    assert chunk["w"].tolist() == chunk.buffers["1.running_mean"][:, 0].tolist() == [0.0, 2.0, 4.0]


def test_a_model_works_on_copies() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    own, given = net[1].running_mean, torch.full((3,), 5.0)
    with installed_buffers(net, {"1.running_mean": given}):
        assert torch.equal(net[1].running_mean, given)
        net(torch.randn(4, 3))
        assert not torch.equal(net[1].running_mean, given)
    assert net[1].running_mean is own
    assert torch.equal(given, torch.full((3,), 5.0))
    assert torch.equal(own, torch.zeros(3))


def test_an_unknown_buffer() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3))
    own = net[0].running_mean
    with pytest.raises(KeyError), installed_buffers(net, {"0.running_mean": torch.ones(3), "7.running_mean": own}):
        pass
    assert net[0].running_mean is own
