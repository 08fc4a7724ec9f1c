r"""A generator and its critic: the Wasserstein GAN with gradient penalty, over flat vectors.

.. math::  \min_G \max_D\; E[D(\theta)] - E[D(G(z))]
           - \lambda\, E\big[(\|\nabla D(\hat\theta)\| - 1)^2\big],

in which :math:`\theta` are draws in the generator's coordinates (:mod:`pyrobnn.distillation.standardization`) and
:math:`\hat\theta` lie at random between a draw and a generated one.
At the critic's optimum the difference of the two means is the Wasserstein distance between draws and generator, up to
the penalty's slack. One generator step follows ``critic_steps`` steps of the critic, each with draws of its own. Both
learning rates fall linearly to zero and the generator that is kept is a running average over its steps, without which
it would keep oscillating about its target. What remains in single coordinates can be removed exactly: the draws' means
and standard deviations are known, so the generator's are set to them.

Gulrajani et al., *Improved Training of Wasserstein GANs* (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pyrobnn.core.arguments import check_number, check_positive, check_positive_int
from pyrobnn.core.moments import RunningMoments
from pyrobnn.guides.generator import Generator, check_hidden, perceptron
from pyrobnn.objectives import NonFiniteLossError
from pyrobnn.training.game import Game, GamePlayer, Phase

__all__ = ["WGAN", "CriticHistory", "DistillationDivergedError", "WGANSettings"]

_MATCHED_BY = 10_000  # generated draws whose moments are matched
_BLOCK_BYTES = 2**26
_FUSED = ("cpu", "cuda")  # devices that have Adam's fused step


class DistillationDivergedError(ArithmeticError):
    """Generator or critic became NaN or infinite."""


@dataclass
class CriticHistory:
    """The critic's estimates, after each generator step.

    Attributes:
        critic: Its estimate ``E[D(draws)] - E[D(generated)]`` of the Wasserstein distance, in the draws' standard
            deviations; it falls toward zero. A small value means little after too few critic steps.
        penalty: The gradient penalty, without its factor.
    """

    critic: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        if not self.critic:
            return "CriticHistory()"
        return f"CriticHistory({len(self.critic)} steps, critic {self.critic[-1]:.3g}, penalty {self.penalty[-1]:.3g})"


@dataclass(frozen=True)
class WGANSettings:
    """Settings of the training, as :func:`pyrobnn.distill` describes them."""

    steps: int
    batch_size: int = 100
    critic_steps: int = 5
    critic_hidden: Sequence[int] = (100, 100, 100)
    penalty: float = 10.0
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    averaging: float = 0.99
    match_moments: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "critic_steps"):
            check_positive_int(name, getattr(self, name))
        check_hidden("critic_hidden", self.critic_hidden)
        for name in ("penalty", "lr"):
            check_positive(name, getattr(self, name))
        check_number("averaging", self.averaging, 0.0, 1.0, below=True)  # 0: none


class WGAN:
    """The training of a generator.

    Args:
        generator: The generator; its buffers are set.
        settings: The settings.
        spread: Standard deviations ``[C]`` of the draws' coordinates, whose means are zero; None: one.

    Attributes:
        history: The critic's estimates.
    """

    def __init__(self, generator: Generator, settings: WGANSettings, spread: Tensor | None = None) -> None:
        self.generator, self.settings = generator, settings
        self.history = CriticHistory()
        scale = generator.scale
        self._spread = scale.new_ones(generator.num_coordinates) if spread is None else spread.to(scale)
        # Weights that all draws have in common are left out of the critic's inputs.
        by_weight = generator.components is None and not bool((scale > 0).all())
        self._varies = (scale > 0).to(scale) if by_weight else None
        self.critic = perceptron([generator.num_coordinates, *settings.critic_hidden, 1]).to(scale)
        # The parameters alone: their average needs no copy of the axes, which are buffers.
        self._generator = self._player("generator", list(generator.parameters()), settings.averaging)
        critic = self._player("critic", self.critic)
        self._game = Game(
            [
                Phase(critic, self._critic_loss, steps=settings.critic_steps, fresh=True),
                Phase(self._generator, self._generator_loss),
            ]
        )

    @property
    def step(self) -> int:
        """Steps of the generator so far."""
        return self._game.history.rounds

    def train(self, batch: Callable[[], Tensor], steps: int) -> None:
        """Generator steps.

        Args:
            batch: Gives coordinates of draws ``[batch_size, C]``, others at each call.
            steps: How many.

        Raises:
            DistillationDivergedError: If the critic's estimate becomes NaN or infinite.
        """
        try:
            rounds = self._game.rounds(iter(batch, None), steps)
        except NonFiniteLossError as error:
            raise DistillationDivergedError(
                f"distillation diverged at step {self.step + 1}: {error} Lower lr, or check the draws."
            ) from error
        self.history.critic += [values["critic.distance"] for values in rounds]
        self.history.penalty += [values["critic.penalty"] for values in rounds]

    @torch.no_grad()
    def finish(self) -> Generator:
        """The generator at the average of its steps, its moments matched if they are to be, with the history."""
        assert self._generator.average is not None
        for parameter, average in zip(self._generator.trained, self._generator.average.parameters(), strict=True):
            parameter.copy_(average)
            parameter.grad = None
        if self.settings.match_moments:
            self._match_moments()
        self.generator.history = self.history
        return self.generator

    def _match_moments(self) -> None:
        """Moves the generator's coordinates so that they have the draws' means and standard deviations."""
        generator, moments = self.generator, RunningMoments(torch.float64)
        size = max(1, _BLOCK_BYTES // (4 * generator.num_coordinates))
        for start in range(0, _MATCHED_BY, size):
            moments.add(generator.coordinates(min(size, _MATCHED_BY - start)))
        spread = moments.std()
        spread[spread == 0] = 1.0
        generator.move_coordinates(moments.mean.to(self._spread), (self._spread / spread).to(self._spread))

    def _critic_loss(self, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            fake = self._seen(self.generator.coordinates(len(real)))
            between = torch.lerp(real, fake, torch.rand(len(real), 1, dtype=real.dtype, device=real.device))
        between.requires_grad_()
        of_real, of_fake, of_between = self.critic(torch.cat([real, fake, between])).split(len(real))
        (slope,) = torch.autograd.grad(of_between.sum(), between, create_graph=True)
        distance = of_real.mean() - of_fake.mean()
        penalty = (slope.square().sum(1).clamp_min(1e-12).sqrt() - 1.0).square().mean()
        return self.settings.penalty * penalty - distance, {"distance": distance, "penalty": penalty}

    def _generator_loss(self, _: Tensor) -> Tensor:
        return -self.critic(self._seen(self.generator.coordinates(self.settings.batch_size))).mean()

    def _seen(self, made: Tensor) -> Tensor:
        return made if self._varies is None else made * self._varies

    def _player(self, name: str, module: nn.Module | list[nn.Parameter], averaging: float | None = None) -> GamePlayer:
        settings = self.settings
        optimizer = partial(torch.optim.Adam, betas=settings.betas, fused=self.generator.scale.device.type in _FUSED)
        falling = partial(LambdaLR, lr_lambda=lambda step: max(0.0, 1.0 - step / settings.steps))
        return GamePlayer(name, module, optimizer, settings.lr, scheduler=falling, averaging=averaging)
