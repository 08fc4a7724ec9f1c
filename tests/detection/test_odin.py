"""ODIN: its gradient against finite differences, its score by a loop, tuning, saving, bad input."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import pyrobnn as pb
from pyrobnn import guides
from pyrobnn.detection import ODIN
from tests.detection.networks import DRAWS, data, posterior


def images(seed: int = 0) -> tuple[pb.SupervisedModel, guides.MeanField, Tensor]:
    """A smooth network of images with two channels, in double precision."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=10)
    guide = guides.MeanField(model).double()
    with torch.no_grad():
        for value in guide.parameters():
            value += 0.3 * torch.randn_like(value)
    return model, guide, torch.rand(5, 2, 4, 4, dtype=torch.float64)


def log_mean(model: pb.SupervisedModel, draws: dict[str, Tensor], x: Tensor, temperature: float) -> Tensor:
    total = 0.0
    for k in range(DRAWS):
        own = {name.removeprefix("net."): value[k] for name, value in draws.items()}
        total = total + (functional_call(model.net.network, own, x) / temperature).softmax(-1) / DRAWS
    return total.log()


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_direction_is_the_sign_of_finite_differences(temperature: float) -> None:
    model, guide, x = images()
    draws = {name: value.detach() for name, value in guide.sample(DRAWS).items()}
    odin = ODIN(model, draws, temperature, num_samples=DRAWS)
    label = log_mean(model, draws, x, temperature).argmax(-1)
    slope, h = torch.zeros_like(x), 1e-6
    for index in range(x[0].numel()):
        step = torch.zeros_like(x[0]).flatten()
        step[index] = h
        ends = [log_mean(model, draws, x + s * step.view_as(x[0]), temperature) for s in (1, -1)]
        difference = (ends[0] - ends[1]).gather(1, label.unsqueeze(1)).squeeze(1) / (2 * h)
        slope.flatten(1)[:, index] = difference
    clear = slope.abs() > 1e-8
    assert clear.double().mean() > 0.95
    assert torch.equal(odin.direction(x, temperature)[clear], slope.sign()[clear])


def test_score_is_that_of_plain_steps() -> None:
    model, guide, x = images()
    draws = {name: value.detach() for name, value in guide.sample(DRAWS).items()}
    std = torch.tensor([0.5, 0.25]).view(2, 1, 1).double()
    odin = ODIN(model, draws, 5.0, 0.1, num_samples=DRAWS, pixel_std=[0.5, 0.25], clip=(0.0, 1.0), batch_size=2)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_mean(model, draws, leaf, 5.0).amax(-1).sum(), leaf)
    moved = (x + 0.1 / std * slope.sign()).clamp(0.0, 1.0)
    expected = -log_mean(model, draws, moved, 5.0).exp().amax(-1)
    assert torch.allclose(odin(x), expected, atol=1e-10)
    assert torch.allclose(odin([(x[:3], None), (x[3:], None)]), expected, atol=1e-10)
    plain = ODIN(model, draws, 1.0, 0.0, num_samples=DRAWS)(x)
    assert torch.allclose(plain, -log_mean(model, draws, x, 1.0).exp().amax(-1), atol=1e-12)


def test_numbers_of_pytorch_ood() -> None:
    peer = pytest.importorskip("pytorch_ood.detector", reason="pytorch-ood is not installed")
    model, _, x = images()
    point = guides.MAP(model).double()
    net = model.net.network
    theirs = peer.ODIN(net, eps=0.05, temperature=10.0, norm_std=[0.5, 0.25]).predict(x)
    ours = ODIN(model, point, 10.0, 0.05, num_samples=1, pixel_std=[0.5, 0.25])(x)
    assert torch.allclose(ours, theirs.double(), atol=1e-4)


def test_tuning_takes_the_best_of_the_grid_and_is_saved() -> None:
    model, guide = posterior()
    x, _ = data(40)
    outliers = {"near": 0.3 * torch.randn(30, 2, generator=torch.Generator().manual_seed(1)), "far": -3.0 * x[:20]}
    odin = ODIN(model, guide, num_samples=DRAWS).tune(x, outliers, temperatures=(1.0, 10.0), epsilons=(0.0, 0.1))
    assert list(odin.grid) == [(1.0, 0.0), (1.0, 0.1), (10.0, 0.0), (10.0, 0.1)]
    for (temperature, epsilon), value in odin.grid.items():
        other = ODIN(model, guide, temperature, epsilon, num_samples=DRAWS)
        known = other(x)
        means = [pb.metrics.auroc(known, other(z)) for z in outliers.values()]
        assert value == pytest.approx(sum(means) / 2, abs=1e-9)
    best = max(odin.grid, key=odin.grid.__getitem__)
    assert (float(odin.temperature), float(odin.epsilon)) == best
    loaded = ODIN(model, guide, num_samples=DRAWS)
    loaded.load_state_dict(odin.state_dict())
    assert loaded.tuned_on == ("near", "far")
    assert torch.equal(loaded(x), odin(x))
    assert not any("net" in name for name in odin.state_dict())


def test_bad_use_is_refused() -> None:
    model, guide = posterior()
    x, _ = data(5)
    odin = ODIN(model, guide, num_samples=2)
    with pytest.raises(ValueError, match="data: it holds no inputs"):
        odin(x[:0])
    with pytest.raises(TypeError, match="data: expected inputs that are one floating-point tensor"):
        odin(torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"out: inputs of 'a' have shape \(3,\), but those of in_ have \(2,\)"):
        odin.tune(x, {"a": torch.rand(4, 3)})
    with pytest.raises(ValueError, match="out: 'a' holds no inputs"):
        odin.tune(x, {"a": x[:0]})
    with pytest.raises(ValueError, match="out: it names no outliers"):
        odin.tune(x, {})
    with pytest.raises(TypeError, match="out: expected outliers by name"):
        odin.tune(x, [x])
    with pytest.raises(ValueError, match="temperatures: expected a positive number, got 0"):
        odin.tune(x, {"a": x}, temperatures=[0.0])
    with pytest.raises(ValueError, match="pixel_std: 3 channels, but inputs have shape"):
        ODIN(model, guide, num_samples=2, pixel_std=[1.0, 1.0, 1.0])(x)
    with pytest.raises(ValueError, match="epsilon: expected a number of at least 0"):
        ODIN(model, guide, epsilon=-1.0)
    real = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(), dist.Normal(0.0, 1.0), num_data=5)
    with pytest.raises(TypeError, match="likelihood: ODIN needs a likelihood of classes"):
        ODIN(real, guides.MAP(real))
