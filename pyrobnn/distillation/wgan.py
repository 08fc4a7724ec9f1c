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

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_number, check_positive, check_positive_int
from pyrobnn.core.moments import RunningMoments
from pyrobnn.guides.generator import Generator, check_hidden, perceptron

__all__ = ["WGAN", "CriticHistory", "DistillationDivergedError", "WGANSettings"]

_MATCHED_BY = 10_000  # generated draws whose moments are matched
_BLOCK_BYTES = 2**26
_CHECKED_EVERY = 100  # generator steps between two checks that all is finite: each waits for the device


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
        self._parameters = list(generator.parameters())
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._optimizers = [_adam(self._parameters, settings), _adam(list(self.critic.parameters()), settings)]
        self._estimates: list[Tensor] = []
        self.step = 0

    def train(self, batch: Callable[[], Tensor], steps: int) -> None:
        """Generator steps.

        Args:
            batch: Gives coordinates of draws ``[batch_size, C]``, others at each call.
            steps: How many.

        Raises:
            DistillationDivergedError: If the critic's estimate becomes NaN or infinite.
        """
        of_generator, of_critic = self._optimizers
        for _ in range(steps):
            rate = self.settings.lr * max(0.0, 1.0 - self.step / self.settings.steps)
            for group in (*of_generator.param_groups, *of_critic.param_groups):
                group["lr"] = rate
            for _ in range(self.settings.critic_steps):
                estimate = self._critic_step(batch())
            self._generator_step()
            self._estimates.append(estimate)
            self.step += 1
            if len(self._estimates) == _CHECKED_EVERY:
                self._record_estimates()
        self._record_estimates()

    @torch.no_grad()
    def finish(self) -> Generator:
        """The generator at the average of its steps, its moments matched if they are to be, with the history."""
        for parameter, average in zip(self._parameters, self._average, strict=True):
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

    def _critic_step(self, real: Tensor) -> Tensor:
        with torch.no_grad():
            fake = self._seen(self.generator.coordinates(len(real)))
            between = torch.lerp(real, fake, torch.rand(len(real), 1, dtype=real.dtype, device=real.device))
        between.requires_grad_()
        of_real, of_fake, of_between = self.critic(torch.cat([real, fake, between])).split(len(real))
        (slope,) = torch.autograd.grad(of_between.sum(), between, create_graph=True)
        distance = of_real.mean() - of_fake.mean()
        penalty = (slope.square().sum(1).clamp_min(1e-12).sqrt() - 1.0).square().mean()
        optimizer = self._optimizers[1]
        optimizer.zero_grad()
        (self.settings.penalty * penalty - distance).backward()
        optimizer.step()
        return torch.stack([distance.detach(), penalty.detach()])

    def _generator_step(self) -> None:
        self.critic.requires_grad_(False)
        loss = -self.critic(self._seen(self.generator.coordinates(self.settings.batch_size))).mean()
        self.critic.requires_grad_(True)
        optimizer = self._optimizers[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # The first steps are far off and count little.
        decay = min(self.settings.averaging, self.step / (self.step + 10.0))
        with torch.no_grad():
            for average, parameter in zip(self._average, self._parameters, strict=True):
                average.lerp_(parameter, 1.0 - decay)

    def _seen(self, made: Tensor) -> Tensor:
        return made if self._varies is None else made * self._varies

    def _record_estimates(self) -> None:
        if not self._estimates:
            return
        estimates = torch.stack(self._estimates)
        if not bool(estimates.isfinite().all()):
            first = int((~estimates.isfinite().all(1)).nonzero()[0]) + self.step - len(estimates) + 1
            raise DistillationDivergedError(
                f"distillation diverged at step {first}: the critic's estimate is not finite; lower lr, or check "
                "the draws."
            )
        self.history.critic += estimates[:, 0].tolist()
        self.history.penalty += estimates[:, 1].tolist()
        self._estimates.clear()


def _adam(parameters: list[nn.Parameter], settings: WGANSettings) -> torch.optim.Adam:
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=settings.lr, betas=settings.betas, fused=fused)
