r"""Generative adversarial networks, of data alone and given classes, whose generator is a Pyro program.

.. math::  y \sim p(y), \quad z \sim p(z), \quad x = G(y, z);  \qquad
           \min_G \max_D\; E_{p(x, y)} \log D(x, y) + E_{p(y) p(z)} \log(1 - D(G(y, z), y)),

with :math:`D` a probability (Goodfellow et al. 2014; Mirza & Osindero 2014). The loss of G that is printed here is
``"minimax"``; where the discriminator is certain it has no gradient, so that the default is ``"non_saturating"``,
:math:`-E \log D(G(y, z), y)`. There is no likelihood and no ELBO: the two networks play a
:class:`pyrobnn.training.Game`. Two remedies against a discriminator that wins, each an option: spectral norms of one
for its layers (Miyato et al. 2018), and a penalty of its logits' slope,
:math:`R_1 = \frac{\gamma}{2} E_{p(x)} \|\nabla_x \log\frac{D}{1 - D}\|^2` (Mescheder et al. 2018).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus
from torch.nn.utils import parametrizations, parametrize

from models.semi_supervised import check_labels
from pyrobnn.core.arguments import check_non_negative, check_positive_int
from pyrobnn.training import Game, GamePlayer, Phase, discriminator_values

__all__ = ["ConditionalGAN", "Joined", "adam", "discriminator_loss", "generator_loss", "with_spectral_norm"]

GeneratorLoss = Literal["non_saturating", "minimax"]


class Joined(nn.Module):
    """A perceptron of several inputs side by side, each a row of numbers: ``G(y, z)``, ``D(x, y)``.

    Args:
        inputs: Numbers of all inputs together.
        outputs: Numbers that it returns.
        hidden: Widths of the hidden layers.
        dropout: Rate of dropout after each of them.
        bounded: Whether the outputs are between 0 and 1, as pixels.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int] = (128, 128), dropout: float = 0.0, bounded: bool = False
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        layers: list[nn.Module] = []
        for width, next_width in itertools.pairwise(sizes):
            layers += [nn.Linear(width, next_width), nn.LeakyReLU(0.2)]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs), *([nn.Sigmoid()] if bounded else []))

    def forward(self, *inputs: Tensor) -> Tensor:
        """The outputs ``[B, outputs]``."""
        return self.net(torch.cat([given.flatten(1) for given in inputs], 1))


class ConditionalGAN(nn.Module):
    """A GAN given classes, or without; it is a Pyro program of samples::

        gan = ConditionalGAN(Joined(10 + 32, 196, bounded=True), Joined(196 + 10, 1), num_classes=10, latent_dim=32)
        game = gan.game(averaging=0.999)
        game.play(loader, epochs=50)  # batches (x, y)
        made = gan.averaged(game)
        x = made.draw(100)  # of p(x)
        x = made.draw(100, y=torch.full((100,), 3))
        pyro.poutine.trace(pyro.condition(made, {"z": style})).get_trace(100)  # any of its sites fixed

    Args:
        generator: G, from one-hot classes ``[B, K]`` and noise ``[B, latent_dim]`` to samples; from noise alone without
            classes.
        discriminator: D, from samples and one-hot classes to logits ``[B, 1]``; from samples alone without classes.
        num_classes: K; None: no classes.
        latent_dim: Length of the noise z.
        class_probs: p(y) ``[K]`` of the program; None: uniform. In training generated samples have the labels of the
            batch, so that these probabilities need not be those of the data.
        prior: p(z) of one number; None: standard normal.
        loss: Of the generator.
        gradient_penalty: The factor γ of R₁; 0: none.
        spectral_norm: Whether D's linear and convolutional layers get spectral norm one.

    Raises:
        ValueError: If a number is outside its range, or ``class_probs`` are not K probabilities.
    """

    class_probs: Tensor

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        num_classes: int | None = None,
        latent_dim: int = 32,
        class_probs: Tensor | None = None,
        prior: dist.Distribution | None = None,
        loss: GeneratorLoss = "non_saturating",
        gradient_penalty: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        check_positive_int("latent_dim", latent_dim)
        check_non_negative("gradient_penalty", gradient_penalty)
        if loss not in ("non_saturating", "minimax"):
            raise ValueError(f"loss: expected 'non_saturating' or 'minimax', got {loss!r}.")
        if num_classes is not None:
            check_positive_int("num_classes", num_classes)
        probs = torch.full((num_classes or 1,), 1.0 / (num_classes or 1)) if class_probs is None else class_probs
        if probs.shape != (num_classes or 1,) or bool((probs < 0).any()) or abs(float(probs.sum()) - 1.0) > 1e-4:
            raise ValueError(
                f"class_probs: expected {num_classes or 1} probabilities, got {tuple(probs.shape)} numbers."
            )
        self.generator = generator
        self.discriminator = with_spectral_norm(discriminator) if spectral_norm else discriminator
        self.num_classes, self.latent_dim = num_classes, latent_dim
        self.prior = dist.Normal(0.0, 1.0) if prior is None else prior
        self.loss, self.gradient_penalty = loss, gradient_penalty
        self.register_buffer("class_probs", probs)

    def forward(self, num_samples: int, y: Tensor | None = None) -> Tensor:
        """The Pyro program: sites ``"y"`` and ``"z"`` in the plate ``"samples"``, and ``"x"``.

        Args:
            num_samples: How many samples, B.
            y: Their classes ``[B]``, observed; None: drawn.

        Returns:
            The samples ``[B, ...]``.
        """
        with pyro.plate("samples", num_samples):
            if self.num_classes is not None:
                y = pyro.sample("y", dist.Categorical(self.class_probs), obs=y)
            z = pyro.sample("z", self.noise_prior())
            x = self.generate(y, z)
            return pyro.deterministic("x", x, event_dim=x.dim() - 1)

    def noise_prior(self) -> dist.Distribution:
        """p(z), of vectors, where the generator is."""
        return self.prior.expand([self.latent_dim]).to_event(1)

    def generate(self, y: Tensor | None, z: Tensor) -> Tensor:
        """G at classes ``[B]`` and noise ``[B, latent_dim]``."""
        z = z.to(self.class_probs)
        return self.generator(z) if self.num_classes is None else self.generator(self.coded(y), z)

    def coded(self, y: Any) -> Tensor:
        """Classes ``[B]`` as one-hot rows ``[B, K]``."""
        assert self.num_classes is not None
        return one_hot(y, self.num_classes).to(self.class_probs)

    @torch.no_grad()
    def draw(self, num_samples: int, y: Tensor | None = None) -> Tensor:
        """Samples ``[B, ...]`` in evaluation mode, of the classes ``y`` if given.

        Raises:
            ValueError: If a class is not among the K.
        """
        if y is not None:
            if self.num_classes is None:
                raise ValueError("y: the GAN has no classes; build it with num_classes=.")
            check_labels(y, self.num_classes)
        modes = [(module, module.training) for module in self.modules()]
        try:
            return self.eval()(num_samples, y)
        finally:
            for module, training in modes:
                module.training = training

    def game(
        self,
        *,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        discriminator_steps: int = 1,
        averaging: float | None = 0.99,
        scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    ) -> Game:
        """The game of both networks, phases ``"D"`` and ``"G"``; batches are ``(x, y)``, or ``x`` without classes.

        Args:
            lr: Learning rate of both.
            betas: Adam's decay rates (Radford et al. 2016).
            discriminator_steps: Steps of D in a round, each with a batch of its own.
            averaging: Decay of the running average of G (:meth:`averaged`).
            scheduler: Learning-rate schedule of both, by rounds.
        """
        optimizer = adam(betas)
        d = GamePlayer("D", self.discriminator, optimizer, lr, scheduler=scheduler)
        g = GamePlayer("G", self.generator, optimizer, lr, averaging=averaging, scheduler=scheduler)
        game = Game([Phase(d, self._of_discriminator, discriminator_steps, fresh=True), Phase(g, self._of_generator)])
        self._seen = game.history
        return game

    def averaged(self, game: Game) -> ConditionalGAN:
        """A copy with the running average of the generator.

        Raises:
            ValueError: If the game keeps none.
        """
        average = next(player.average for player in game.players if player.name == "G")
        if average is None:
            raise ValueError("game: it keeps no average of the generator; make it by game(averaging=0.99).")
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        twin.generator = average
        return twin

    def _read(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        if self.num_classes is None:
            return (batch[0] if isinstance(batch, list | tuple) else batch), None
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise TypeError(f"batch: expected (x, y) with the classes y, got {type(batch).__name__}.")
        x, y = batch
        if self._seen.epochs == 0:
            check_labels(y, self.num_classes)
        return x, y

    def _judge(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.discriminator(x) if y is None else self.discriminator(x, self.coded(y))

    def _made(self, rows: int, y: Tensor | None) -> Tensor:
        return self.generate(y, self.noise_prior().sample((rows,)))

    def _of_discriminator(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = self._read(batch)
        with torch.no_grad():
            made = self._made(len(x), y)
        if self.gradient_penalty:
            x = x.detach().requires_grad_()
        real, fake = self._judge(x, y), self._judge(made, y)
        loss = discriminator_loss(real, fake)
        if self.gradient_penalty:
            (slope,) = torch.autograd.grad(real.sum(), x, create_graph=True)
            loss = loss + 0.5 * self.gradient_penalty * slope.flatten(1).square().sum(1).mean()
        return loss, discriminator_values(real, fake)

    def _of_generator(self, batch: Any) -> Tensor:
        x, y = self._read(batch)
        return generator_loss(self._judge(self._made(len(x), y), y), self.loss)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """``-E log D(real) - E log(1 - D(fake))`` of logits."""
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor, kind: GeneratorLoss = "non_saturating") -> Tensor:
    """Of logits of generated samples: ``-E log D``, or ``E log(1 - D)`` for ``"minimax"``."""
    return softplus(-fake).mean() if kind == "non_saturating" else -softplus(fake).mean()


def with_spectral_norm(network: nn.Module) -> nn.Module:
    """The same network, the weights of its linear and convolutional layers divided by their largest singular value."""
    for module in list(network.modules()):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and not parametrize.is_parametrized(
            module
        ):
            parametrizations.spectral_norm(module)
    return network


def adam(betas: tuple[float, float]) -> Callable[..., torch.optim.Optimizer]:
    """A function from parameters and ``lr`` to Adam with these decay rates."""

    def make(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)

    return make
