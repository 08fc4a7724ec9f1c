"""Denormals are zero within the block, in training and in predictions, and the previous mode is restored."""

from __future__ import annotations

import contextlib
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.core.denormals import denormals_as_zero, flushes_denormals
from pyrobnn.guides import MAP

if not torch.set_flush_denormal(True):
    pytest.skip("this processor cannot flush denormals", allow_module_level=True)
torch.set_flush_denormal(False)


class Watching(nn.Linear):
    """A layer that notes whether denormals are flushed when it is run."""

    seen: Any = ()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(flushes_denormals())
        return super().forward(x)


@pytest.mark.parametrize("before", [False, True])
def test_the_mode_of_before_comes_back(before: bool) -> None:
    torch.set_flush_denormal(before)
    try:
        with denormals_as_zero():
            assert flushes_denormals()
        with contextlib.suppress(KeyError), denormals_as_zero():
            raise KeyError
        assert flushes_denormals() == before
        with denormals_as_zero(), denormals_as_zero():
            pass
        assert flushes_denormals() == before
    finally:
        torch.set_flush_denormal(False)


def test_training_prediction_and_sampling_flush() -> None:
    torch.manual_seed(0)
    net = Watching(2, 2)
    x, y = torch.randn(8, 2), torch.randint(2, (8,))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=8)
    seen = model.net.network.seen = []
    guide = MAP(model)
    for run in (
        lambda: pb.fit(model, guide, DataLoader(TensorDataset(x, y), 4), epochs=1, progress=False),
        lambda: pb.predict(model, guide, x, num_samples=1),
        lambda: pb.sample(model, (x, y), kernel=pb.sampling.SGLD(1e-3), num_samples=2, progress=False),
    ):
        del seen[:]
        run()
        assert seen
        assert seen[-1]
        assert not flushes_denormals()
    del seen[:]
    for prediction, _ in pb.prediction.predict_batches(model, guide, [x, x], 1):
        assert not flushes_denormals()  # the caller's own code runs as it would
        assert len(prediction.mean) == 8
    assert seen
    assert all(seen)
