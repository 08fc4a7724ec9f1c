"""GANs: the losses against their definitions, the Pyro program, and a mixture that is learned class by class."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.optim.lr_scheduler import LambdaLR

from models.conditional_gan import ConditionalGAN, Joined, discriminator_loss, generator_loss, with_spectral_norm

MODES = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
SPREAD, EDGES = 0.4, torch.tensor([-1.25, -0.75, 0.0, 0.75, 1.25])


def small(**options: Any) -> ConditionalGAN:
    torch.manual_seed(0)
    return ConditionalGAN(Joined(4 + 2, 2, (16,)), Joined(2 + 4, 1, (64, 64)), num_classes=4, latent_dim=2, **options)


def batches(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (count, 256), generator=generator)
    return list(zip(MODES[y] + SPREAD * torch.randn(count, 256, 2, generator=generator), y, strict=True))


def distances(gan: ConditionalGAN, count: int = 20_000) -> list[float]:
    """Total variation between histograms of 6 x 6 bins of generated samples and the exact probabilities, by class.

    From 20,000 exact draws it is about 0.01: half the sum over bins of deviations sqrt(2 p (1 - p) / (pi n)).
    """
    found = []
    for label, mode in enumerate(MODES):
        cuts = dist.Normal(mode[:, None], SPREAD).cdf(EDGES)
        cuts = torch.cat([torch.zeros(2, 1), cuts, torch.ones(2, 1)], 1).diff(dim=1)
        x = gan.draw(count, torch.full((count,), label))
        cells = torch.bucketize(x[:, 0].contiguous(), EDGES) * 6 + torch.bucketize(x[:, 1].contiguous(), EDGES)
        frequencies = torch.bincount(cells, minlength=36) / count
        found.append(0.5 * float((frequencies - (cuts[0][:, None] * cuts[1]).flatten()).abs().sum()))
    return found


@pytest.mark.statistical
def test_a_mixture_is_learned_class_by_class() -> None:
    gan = small(gradient_penalty=0.3)
    before = distances(gan)
    falling = partial(LambdaLR, lr_lambda=lambda step: 1.0 - step / 1000)
    game = gan.game(lr=5e-3, averaging=0.99, scheduler=falling)
    game.play(batches(100), epochs=10, seed=0, progress=False)
    found = distances(gan.averaged(game))
    assert max(found) < 0.1, found
    assert min(before) > 0.5


def test_losses_are_the_definitions() -> None:
    real, fake = torch.randn(7, 1), torch.randn(7, 1)
    expected = -(logsigmoid(real).mean() + logsigmoid(-fake).mean())
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(generator_loss(fake), -logsigmoid(fake).mean())
    torch.testing.assert_close(generator_loss(fake, "minimax"), logsigmoid(-fake).mean())


def test_the_minimax_loss_has_no_gradient_where_the_discriminator_is_certain() -> None:
    fake = torch.tensor([-30.0], requires_grad=True)
    (saturated,) = torch.autograd.grad(generator_loss(fake, "minimax"), fake)
    (useful,) = torch.autograd.grad(generator_loss(fake), fake)
    assert abs(float(saturated)) < 1e-12
    assert float(useful) == pytest.approx(-1.0)


def test_the_penalty_is_half_gamma_times_the_squared_slope() -> None:
    """Of a linear discriminator the slope is its weights."""

    class Linear(nn.Linear):
        def forward(self, x: Tensor, _: Tensor | None = None) -> Tensor:
            return super().forward(x)

    def loss(gamma: float) -> float:
        torch.manual_seed(1)
        gan = ConditionalGAN(nn.Linear(3, 2), Linear(2, 1), latent_dim=3, gradient_penalty=gamma)
        phase = gan.game().phases[0]
        torch.manual_seed(2)
        found = phase.evaluate(torch.randn(5, 2))[0]
        slopes.append(float(gan.discriminator.weight.detach().square().sum()))
        return float(found.detach())

    slopes: list[float] = []
    assert loss(4.0) - loss(0.0) == pytest.approx(2.0 * slopes[0], rel=1e-5)


def test_spectral_norms_are_one() -> None:
    gan = small(spectral_norm=True)
    gan.game().play(batches(30), epochs=1, seed=0, progress=False)
    for layer in gan.discriminator.net:
        if isinstance(layer, nn.Linear):
            norm = torch.linalg.matrix_norm(layer.weight.detach(), 2)  # one power iteration a step follows it
            assert float(norm) == pytest.approx(1.0, abs=0.1)
    assert with_spectral_norm(gan.discriminator) is gan.discriminator  # a second time changes nothing


def test_the_program_can_be_conditioned_and_sampled() -> None:
    gan = small(class_probs=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    trace = pyro.poutine.trace(gan).get_trace(2000)
    frequencies = torch.bincount(trace.nodes["y"]["value"], minlength=4) / 2000
    deviation = (gan.class_probs * (1.0 - gan.class_probs) / 2000).sqrt()
    assert float(((frequencies - gan.class_probs) / deviation).abs().max()) < 4.0
    y, z = torch.tensor([0, 3]), torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    fixed = pyro.condition(gan, {"y": y, "z": z})
    expected = gan.generator(torch.eye(4)[y], z)
    torch.testing.assert_close(fixed(2), expected)
    torch.testing.assert_close(pyro.condition(gan, {"z": z})(2, y), expected)
    log_prob = pyro.poutine.trace(fixed).get_trace(2).log_prob_sum()
    expected_density = math.log(0.1 * 0.4) + float(dist.Normal(0.0, 1.0).log_prob(z).sum())
    assert float(log_prob) == pytest.approx(expected_density, rel=1e-5)
    drawn = Predictive(gan, num_samples=3)(5)
    assert drawn["x"].shape == (3, 5, 2)


def test_without_classes() -> None:
    torch.manual_seed(0)
    gan = ConditionalGAN(Joined(2, 2, (8,)), Joined(2, 1, (8,)), latent_dim=2, prior=dist.Uniform(0.0, 1.0))
    game = gan.game(discriminator_steps=2, averaging=None)
    history = game.play([x for x, _ in batches(6)], epochs=2, progress=False)
    assert history.rounds == 6
    assert set(history.terms) == {"D.loss", "D.real", "D.fake", "D.spread", "G.loss"}
    assert gan.draw(5).shape == (5, 2)
    assert set(pyro.poutine.trace(gan).get_trace(3).nodes) >= {"z", "x"}
    with pytest.raises(ValueError, match="y: the GAN has no classes"):
        gan.draw(2, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="game: it keeps no average"):
        gan.averaged(game)


def test_bad_input_is_refused() -> None:
    x = torch.zeros(3, 2)
    gan = small()
    for batch, error, message in [
        (x, TypeError, r"batch: expected \(x, y\)"),
        ((x, torch.tensor([0, 1, 4])), ValueError, "y: expected classes .* from 0 to 3, .* to 4"),
        ((x, torch.tensor([0.0, 1.0, 2.0])), TypeError, "y: expected integer classes"),
    ]:
        with pytest.raises(error, match=message):
            gan.game().play([batch], epochs=1, progress=False)
    with pytest.raises(ValueError, match="class_probs"):
        small(class_probs=torch.ones(4))
    with pytest.raises(ValueError, match="loss: expected"):
        small(loss="hinge")
