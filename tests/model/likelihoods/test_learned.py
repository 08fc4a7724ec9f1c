"""A noise scale that is not stated: where training starts it, and who refuses to hold it fixed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

import pyrobnn as pb
from pyrobnn.guides import MAP, Laplace
from pyrobnn.model.likelihoods import Normal
from pyrobnn.sampling import HMC, SGLD

X = torch.linspace(-1.0, 1.0, 12).unsqueeze(-1)
Y = 40.0 * X + 300.0
BATCHES = [(X[:8], Y[:8]), (X[8:], Y[8:])]
resting: Any = functools.partial(torch.optim.SGD, momentum=0.0)  # with lr=1e-30 parameters stay where they are


def model(likelihood: Normal | None = None) -> pb.SupervisedModel:
    return pb.SupervisedModel(nn.Linear(1, 1), likelihood or Normal(), num_data=12)


def fit(built: Any, guide: Any, **options: Any) -> pb.training.History:
    settings: dict[str, Any] = {"epochs": 1, "lr": 1e-30, "optimizer": resting, "progress": False, "seed": 0}
    return pb.fit(built, guide, BATCHES, **(settings | options))


def noise(built: Any) -> torch.Tensor:
    return built.likelihood.noise_scale().detach()


def test_fit_starts_at_the_deviation_of_the_first_batch() -> None:
    built = model()
    fit(built, MAP(built))
    torch.testing.assert_close(noise(built), Y[:8].std())


def test_a_first_batch_without_targets_leaves_the_start_to_the_next() -> None:
    built = pb.SupervisedModel(nn.Linear(1, 1), Normal(missing=True), num_data=12)
    batches = [(X[:4], torch.full((4, 1), torch.nan)), (X[4:], Y[4:])]
    pb.fit(built, MAP(built), batches, epochs=1, lr=1e-30, optimizer=resting, progress=False)
    torch.testing.assert_close(noise(built), Y[4:].std())


def test_what_was_trained_is_not_started_again() -> None:
    built = model()
    guide = MAP(built)
    fit(built, guide, epochs=50, lr=0.1, optimizer=None)
    before = noise(built)
    assert before != Y[:8].std()
    fit(built, guide)
    assert torch.equal(noise(built), before)


def test_a_resumed_run_continues_with_the_noise_it_had(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Linear(1, 1)

    def run(directory: Path, epochs: int) -> torch.Tensor:
        built = pb.SupervisedModel(net, Normal(), num_data=12)
        settings = {"lr": 0.05, "optimizer": None, "checkpoint": directory, "resume": True}
        fit(built, MAP(built), epochs=epochs, **settings)
        return noise(built)

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 3)
    assert torch.equal(run(tmp_path / "parts", 6), whole)


class GroupEffects(PyroModule):
    """A model of one's own with a likelihood of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.likelihood = Normal()
        self.num_data = 12

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", self.num_data, subsample=torch.arange(len(x))):
            pyro.sample("y", self.likelihood(slope * x), obs=y)


def test_the_likelihood_of_a_model_of_ones_own_is_started_too() -> None:
    built = GroupEffects()
    fit(built, MAP(built, example=BATCHES[0]))
    torch.testing.assert_close(noise(built), Y[:8].std())


def test_integer_targets_and_several_likelihoods_start_nothing() -> None:
    built = model()
    pb.model.likelihoods.learned.initialize_likelihood(built, Y.long())
    pb.model.likelihoods.learned.initialize_likelihood(nn.ModuleList([Normal(), built.likelihood]), Y)
    pb.model.likelihoods.learned.initialize_likelihood(built, {"y": Y})
    pb.model.likelihoods.learned.initialize_likelihood(lambda x: x, Y)
    assert built.likelihood.untrained


@pytest.mark.parametrize(
    "kernel", [HMC(step_size=1e-3, num_leapfrog=2, compile=False), SGLD(step_size=1e-9)], ids=["hmc", "sgld"]
)
def test_samplers_hold_a_trained_noise_and_refuse_one_that_was_never_trained(kernel: Any) -> None:
    built = model()
    data = BATCHES if isinstance(kernel, SGLD) else (X, Y)
    with pytest.raises(ValueError, match=r"^likelihood: the scale of Normal is to be learned, but sample\(\) holds it"):
        pb.sample(built, data, kernel=kernel, num_samples=2, progress=False)
    assert built.likelihood.untrained
    fit(built, MAP(built))
    before = noise(built)
    chains = pb.sample(built, data, kernel=kernel, num_samples=2, progress=False)
    assert torch.equal(noise(built), before)
    assert "likelihood.scale" not in chains.layout


def test_curvature_refuses_a_noise_that_was_never_trained() -> None:
    built = model()
    with pytest.raises(ValueError, match=r"^likelihood: .*Laplace.fit holds it fixed.*dist.LogNormal"):
        Laplace(built, structure="full").fit(built, BATCHES)
    fit(built, guide := Laplace(built, structure="full"))
    guide.fit(built, BATCHES)
    assert bool(guide.fitted)


def test_a_noise_with_a_prior_is_sampled() -> None:
    built = model(Normal(dist.LogNormal(3.0, 1.0)))
    chains = pb.sample(
        built, (X, Y), kernel=HMC(step_size=1e-4, num_leapfrog=2, compile=False), num_samples=3, progress=False
    )
    assert chains.layout["likelihood.scale"].shape == ()


def test_the_learned_noise_reaches_its_maximum_likelihood() -> None:
    """At the mode of a linear model with flat priors σ² is the mean squared residual, whatever the targets' unit."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 1, generator=generator)
    y = 2e3 * x + 5e2 * torch.randn(40, 1, generator=generator)
    built = pb.SupervisedModel(nn.Linear(1, 1), Normal(), dist.Normal(0.0, 1e8), num_data=40)
    built.double()
    x, y = x.double(), y.double()
    design = torch.cat([x, torch.ones_like(x)], 1)
    residual = y - design @ torch.linalg.lstsq(design, y).solution
    start = {"net.weight": torch.tensor([[2e3]]), "net.bias": torch.zeros(1)}
    guide = MAP(built, start)
    schedule = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)
    optimizer = torch.optim.Adam([{"params": guide.parameters(), "lr": 20.0}, {"params": built.parameters()}], lr=0.1)
    pb.fit(built, guide, [(x, y)], epochs=800, optimizer=optimizer, scheduler=schedule, progress=False)
    torch.testing.assert_close(noise(built), residual.square().mean().sqrt(), rtol=1e-3, atol=0.0)
