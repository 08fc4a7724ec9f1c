"""Fitting, prediction and sampling on a CUDA device give what they give on the processor."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
ROWS = 64
GUIDES = [
    pb.guides.MAP,
    pb.guides.MeanField,
    lambda model: pb.guides.LowRankNormal(model, rank=2),
    lambda model: pb.guides.DeltaMixture(model, num_members=3),
]


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 4, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def model(device: str = "cpu") -> pb.SupervisedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    made = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=ROWS)
    return made.to(device)


def fitted(device: str, make_guide: Any, **options: Any) -> tuple[pb.SupervisedModel, Any, pb.History]:
    loader = DataLoader(TensorDataset(*rows()), batch_size=ROWS)
    built = model()
    guide = make_guide(built)
    options = {"epochs": 20, "lr": 0.05, "device": device, "seed": 0, "progress": False} | options
    return built, guide, pb.fit(built, guide, loader, **options)


def test_a_point_is_trained_as_on_the_processor() -> None:
    _, here, _ = fitted("cpu", pb.guides.MAP)
    _, there, _ = fitted(DEVICE, pb.guides.MAP)
    torch.testing.assert_close(there.flat_loc.cpu(), here.flat_loc, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make_guide", GUIDES)
def test_guides_learn_and_predict(make_guide: Any) -> None:
    built, guide, history = fitted(DEVICE, make_guide)
    x, y = rows()
    assert history.log_likelihood[-1] > history.log_likelihood[0]
    for method in ("loop", "vmap"):
        prediction = pb.predict(built, guide, x.to(DEVICE), 8, method=method)
        assert prediction.mean.device.type == DEVICE
        assert float((prediction.mean.argmax(-1).cpu() == y).float().mean()) > 0.7


@pytest.mark.parametrize("make_guide", GUIDES[:2])
def test_compiled_steps_are_the_uncompiled_ones(make_guide: Any) -> None:
    _, plain, _ = fitted(DEVICE, make_guide, epochs=5)
    _, compiled, _ = fitted(DEVICE, make_guide, epochs=5, compile=True)
    for right, left in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [pb.sampling.SGLD(1e-4), pb.sampling.HMC(0.01, num_leapfrog=4)])
def test_chains_run(kernel: Any) -> None:
    built = model(DEVICE)
    data = tuple(part.to(DEVICE) for part in rows())
    draws = pb.sample(built, data, kernel=kernel, num_samples=4, num_chains=2, seed=0, progress=False)
    prediction = pb.predict(built, draws, data[0], num_samples=4)
    assert bool(prediction.mean.isfinite().all())
