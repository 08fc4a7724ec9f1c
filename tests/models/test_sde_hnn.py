"""The SDE network: its formula, its limits, mixtures over paths, posteriors, what is aleatoric."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from models.sde_hnn import PathMixture, SDENetwork, sde_hnn
from pyrobnn import guides
from pyrobnn.layers.sde import brownian_increments
from tests.conformance.likelihood_suite import LikelihoodConformance

SMALL: dict[str, Any] = {"inputs": 1, "hidden": 8, "steps": 4, "paths": 4, "prediction_paths": 20}


def data(count: int = 256) -> tuple[Tensor, Tensor]:
    """Noise that grows from left to right."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, generator=generator) * 2 - 1
    noise = 0.05 + 0.5 * (x > 0)
    return x, (2 * x).sin() + noise * torch.randn(x.shape, generator=generator)


class TestPathMixtureConformance(LikelihoodConformance):
    num_outputs = 12
    targets_are_independent = False
    is_known_to_checkpoints = False

    def make(self, **options: Any) -> PathMixture:
        return PathMixture(2, 0.05, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        density = torch.zeros(len(y)).double()
        for path in outputs.split(4, -1):
            scale = (1 + path[:, 2:].exp()).log() + 0.05
            each = stats.norm(path[:, :2].numpy(), scale.numpy()).pdf(y.numpy())
            density += torch.as_tensor(each).prod(-1) / 3
        return density.log()


def test_one_path_is_a_heteroscedastic_normal() -> None:
    outputs, y = torch.randn(5, 2), torch.randn(5, 1)
    found = PathMixture(1, 0.01)(outputs).log_prob(y)
    torch.testing.assert_close(found, pb.likelihoods.HeteroscedasticNormal(0.01)(outputs).log_prob(y))
    with pytest.raises(ValueError, match=r"^net: PathMixture\(2\) expects outputs \[B, R \* 4\]"):
        PathMixture(2).target_shape(torch.zeros(5, 6))


# -------------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("sees_variation", [True, False])
def test_the_network_computes_the_formula(sees_variation: bool) -> None:
    """Path by path and step by step, with the fixed noise of evaluation."""
    torch.manual_seed(1)
    net = SDENetwork(3, 2, hidden=4, steps=3, duration=1.5, prediction_paths=5, sees_variation=sees_variation).eval()
    x = torch.randn(6, 3)
    found = net(x).unflatten(1, (5, 2, 2))
    for path in range(5):
        h, variation = net.encoder(x), torch.zeros(6, 4)
        for index in range(3):
            time = torch.tensor([index * 0.5])
            inner = [(f.state(h) + f.time.weight[:, 0] * time).tanh() for f in (net.drift, net.diffusion)]
            f, g = 3.0 * net.drift.end(inner[0]).tanh(), net.diffusion.end(inner[1]).sigmoid()
            h, variation = h + 0.5 * f + g * net.increments[index, path], variation + 0.5 * g**2
        seen = torch.cat([h, variation.sqrt()], -1) if sees_variation else h
        torch.testing.assert_close(found[:, path], torch.stack([net.mean(h), net.scale(seen)], 1))


def test_without_diffusion_paths_are_equal_and_the_equation_is_ordinary() -> None:
    torch.manual_seed(2)
    net = SDENetwork(1, hidden=4, max_diffusion=0.0, paths=3, prediction_paths=2)
    x = torch.randn(5, 1)
    trained, evaluated = net.train()(x).unflatten(1, (3, 2)), net.eval()(x).unflatten(1, (2, 2))
    # Equal up to rounding: a matrix product may add up the rows of a batch in different orders.
    torch.testing.assert_close(trained[:, :1].expand_as(trained), trained, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(trained[:, 0], evaluated[:, 0])
    assert bool(torch.autograd.grad(trained.sum(), [*net.drift.parameters()])[0].isfinite().all())


def test_noise_is_fixed_in_evaluation_and_drawn_in_training() -> None:
    net, x = SDENetwork(**SMALL), torch.randn(5, 1)
    assert not torch.equal(net.train()(x), net.train()(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    torch.testing.assert_close(net(x)[1:3], net(x[1:3]))
    assert net(x).shape == (5, 20 * 2)
    free = SDENetwork(**SMALL | {"fixed_noise": False}).eval()
    assert not torch.equal(free(x), free(x))


def test_an_encoder_of_ones_own_makes_the_first_state() -> None:
    encoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
    net, x = SDENetwork(**SMALL | {"inputs": 3}, encoder=encoder, max_diffusion=0.0).eval(), torch.randn(5, 3)
    plain = SDENetwork(**SMALL | {"inputs": 8}, encoder=nn.Identity(), max_diffusion=0.0).eval()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if "encoder" not in name})
    torch.testing.assert_close(net(x), plain(encoder(x)))
    with pytest.raises(ValueError, match=r"^encoder: expected it to return states of shape \(5, 8\), got \(5, 3\)"):
        SDENetwork(**SMALL, encoder=nn.Identity())(x)


def test_paths_are_antithetic_or_not() -> None:
    """For an odd number one path has no mirror image."""
    pairs = SDENetwork(**SMALL | {"prediction_paths": 5}).increments
    assert torch.equal(pairs[:, 3:], -pairs[:, :2])
    single = SDENetwork(**SMALL, antithetic=False).increments
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(single, brownian_increments(4, (20, 1, 8), generator=generator))


def test_noise_rises_in_the_warm_up() -> None:
    """The spread of paths grows with the calls in training; evaluation has the whole noise and counts no call."""
    torch.manual_seed(3)
    net, x = SDENetwork(1, hidden=4, paths=400, noise_warmup=4), torch.zeros(1, 1)
    whole = SDENetwork(1, hidden=4, paths=400)
    whole.load_state_dict(net.state_dict())

    def spread(network: SDENetwork) -> float:
        return float(network(x).detach().unflatten(1, (-1, 2))[0, :, 0].std())

    full, rising = spread(whole), [spread(net) for _ in range(6)]
    net.eval()(x)
    assert int(net.calls) == 6
    # The spread is proportional to the noise while that is small; 400 paths know it to 4 % (z <= 4).
    assert [value / full for value in rising] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0], rel=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a positive int"),
        ({"duration": -1.0}, "duration: expected a positive time"),
        ({"paths": 0}, "paths: expected a positive int"),
        ({"method": "heun"}, "method: expected 'euler' or 'milstein'"),
        ({"max_diffusion": -1.0}, "max_diffusion: expected a number from 0"),
        ({"noise_warmup": -1}, "noise_warmup: expected an int of at least 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SDENetwork(**SMALL | options)


# ---------------------------------------------------------------------------------------------------------- the model


def test_what_paths_differ_in_is_aleatoric() -> None:
    """By hand for each draw of the weights: the variance within paths and between them; epistemic is what is left."""
    torch.manual_seed(4)
    model = sde_hnn(256, **SMALL)
    guide, x = guides.MeanField(model, init_scale=0.1), data(12)[0]
    found = pb.predict(model, guide, x, 5, seed=0, return_draws=True)
    assert found.parameters is not None
    loc, scale = found.parameters["loc"], found.parameters["scale"]  # [K, N, R, 1]
    assert loc.shape == (5, 12, 20, 1)
    within, between = scale.square().mean(2), loc.var(2, correction=0)
    torch.testing.assert_close(found.aleatoric, (within + between).mean(0))
    torch.testing.assert_close(found.epistemic, loc.mean(2).var(0, correction=0))
    torch.testing.assert_close(found.mean, loc.mean((0, 2)))
    assert float(between.min()) > 0
    y = torch.randn(12, 1)
    by_path = dist.Normal(loc, scale).log_prob(y.unsqueeze(1)).squeeze(-1)  # [K, N, R]
    torch.testing.assert_close(found.log_prob(y), by_path.logsumexp((0, 2)) - math.log(5 * 20))
    torch.testing.assert_close(found.cdf(found.quantile(0.3)), torch.full((12, 1), 0.3), rtol=1e-4, atol=1e-5)


def test_one_draw_has_no_epistemic_part() -> None:
    model = sde_hnn(256, **SMALL)
    found = pb.predict(model, guides.MAP(model), data(12)[0], 1)
    assert not found.epistemic.any()
    assert float(found.aleatoric.min()) > 0


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_predictions_do_not_depend_on_how_they_are_run(method: Any) -> None:
    torch.manual_seed(5)
    model = sde_hnn(1000, **SMALL)
    guide, x = guides.MeanField(model, init_scale=0.1), data(600)[0]
    whole = pb.predict(model, guide, x, 3, seed=1)
    found = pb.predict(model, guide, [x[:100], x[100:]], 3, seed=1, method=method)
    torch.testing.assert_close(found.mean, whole.mean)
    torch.testing.assert_close(found.aleatoric, whole.aleatoric)


def test_it_learns_mean_and_noise() -> None:
    """Noise of 0.05 on the left and 0.55 on the right: the mean within 0.25, the noise within a factor of 2 of that."""
    torch.manual_seed(6)
    x, y = data()
    model = sde_hnn(len(x), noise_warmup=40, **SMALL)
    guide = guides.MAP(model)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    pb.fit(model, guide, loader, epochs=60, lr=0.02, seed=0, progress=False)
    grid = torch.linspace(-0.9, 0.9, 20).unsqueeze(1)
    found = pb.predict(model, guide, grid, 1, seed=0)
    noise = found.aleatoric.sqrt()
    assert float((found.mean - (2 * grid).sin()).square().mean().sqrt()) < 0.25
    assert float(noise[:8].mean()) < 0.15 and 0.28 < float(noise[12:].mean()) < 1.1


@pytest.mark.parametrize(
    "make",
    [
        lambda model: guides.MeanField(model, init_scale=0.02),
        lambda model: guides.DeltaMixture(model, num_members=3),
        lambda model: guides.DeltaMixture(model, num_members=3, vmap=False),
        lambda model: guides.MCDropout(model, p=0.05, where="net.encoder.2.weight"),
    ],
    ids=["MeanField", "DeltaMixture", "DeltaMixture, looped", "MCDropout"],
)
def test_any_posterior_is_trained(make: Any) -> None:
    """The loss falls, the warm-up's calls are counted, and draws differ."""
    torch.manual_seed(7)
    x, y = data()
    model = sde_hnn(len(x), noise_warmup=10, **SMALL)
    guide = make(model)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    history = pb.fit(model, guide, loader, epochs=6, lr=0.02, seed=0, progress=False)
    assert history.loss[-1] < history.loss[0]
    found = pb.predict(model, guide, x, 6, seed=0)
    assert bool(found.log_prob(y).isfinite().all())
    assert float(found.epistemic.mean()) > 0 and float(found.aleatoric.min()) > 0
