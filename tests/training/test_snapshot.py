"""Snapshots: taken at the end of each cycle, with their weights and statistics."""

from __future__ import annotations

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.training import History, Snapshots, fit


def model_of(affine: bool = False) -> SupervisedModel:
    """A small network with running statistics."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=affine), nn.Tanh(), nn.Linear(4, 2))
    return SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=16)


def test_a_run_of_three_cycles() -> None:
    model = model_of()
    guide = MAP(model)
    snapshots = Snapshots(model, guide, cycle=2)
    x = torch.randn(5, 3)
    predicted: list[Tensor] = []

    def look(history: History) -> None:
        if history.epochs % 2 == 0:
            predicted.append(predict(*copy.deepcopy((model, guide)), x, 1).mean)

    loader = DataLoader(TensorDataset(torch.randn(16, 3), torch.randint(2, (16,))), batch_size=8)
    history = fit(
        model,
        guide,
        loader,
        epochs=7,
        lr=0.4,
        optimizer=torch.optim.SGD,
        scheduler=snapshots.schedule,
        callbacks=[look, snapshots],
        progress=False,
    )
    assert history.learning_rate == pytest.approx([0.4, 0.2 * (1 + math.cos(math.pi / 2))] * 3 + [0.4])
    assert len(snapshots) == 3
    torch.testing.assert_close(predict(model, snapshots.ensemble(), x, 3).mean, torch.stack(predicted).mean(0))
    last = snapshots.ensemble(2, strategy="free")
    assert last.strategy == "free"
    torch.testing.assert_close(predict(model, last, x, 2).mean, torch.stack(predicted[1:]).mean(0))
    with pytest.raises(ValueError, match="num_members: 4 snapshots were requested, but 3 taken"):
        snapshots.ensemble(4)


def test_refusals() -> None:
    model = model_of()
    with pytest.raises(TypeError, match="guide: snapshots are taken of one network, a MAP, not of a MeanField"):
        Snapshots(model, MeanField(model), 2)  # type: ignore[arg-type]
    for cycle in (0, 1.5, True):
        with pytest.raises(ValueError, match="cycle: expected a positive int"):
            Snapshots(model, MAP(model), cycle)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_members: 0 snapshots were requested"):
        Snapshots(model, MAP(model), 2).ensemble()
    normed = model_of(affine=True)
    with pytest.raises(ValueError, match=r"model: its parameter 'net.net.1.weight' is trained but has no prior"):
        Snapshots(normed, MAP(normed), 2)
