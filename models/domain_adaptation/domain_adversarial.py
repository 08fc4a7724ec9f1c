r"""RevGrad (DANN): features from which a discriminator cannot tell the domains apart.

.. math::  L_d = -\tfrac12 E_s \log D(f(x_s)) - \tfrac12\, \frac{\sum_i \gamma_i \log(1 - D(f(x_i)))}{\sum_i \gamma_i},

which the discriminator D minimizes and the features maximize with weight α, by gradient reversal. All gates
:math:`\gamma_i` are 1 in RevGrad (Ganin & Lempitsky 2015). With ``gate=p`` only targets count whose teacher's
confidence is above p: rRevGrad of CAT (Deng, Luo & Zhu 2019), which keeps targets out of the game until their class is
known. With a teacher that averages over a posterior, the gate knows the uncertainty about the weights as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.domain_adaptation.batches import Adversaries, AlignmentLoss, DomainBatch
from models.domain_adaptation.gradient_reversal import reverse_gradient
from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_number, check_positive_int
from pyrobnn.training import DiscriminatorWatch, GameHistory, Phase, discriminator_values

__all__ = ["DomainAdversarial", "DomainRamp", "domain_discriminator"]


class DomainRamp:
    r"""The weight of the published codes, :math:`\alpha\, (2 / (1 + e^{-10 t / T}) - 1)`.

    Args:
        steps: The number T of training steps.
        final: The factor α.
    """

    def __init__(self, steps: int, final: float = 1.0) -> None:
        check_positive_int("steps", steps)
        self.steps, self.final = steps, final

    def __call__(self, step: int) -> float:
        """The weight at a training step."""
        return self.final * (2.0 / (1.0 + math.exp(-10.0 * min(step / self.steps, 1.0))) - 1.0)


class DomainAdversarial(AlignmentLoss):
    """The domain loss, with reversed gradient for the features.

    Args:
        discriminator: A network from features ``[B, F]`` to one logit ``[B, 1]`` of "source"
            (:func:`domain_discriminator`).
        weight: Factor α of the reversed gradient, or its schedule.
        gate: Least confidence of the teacher in a target that counts; None for all targets.

    Raises:
        TypeError: If ``discriminator`` is no module.
        ValueError: If ``weight`` is negative or ``gate`` is not from 0 to below 1.
    """

    name = "domain_adversarial"
    observes = True  # for the discriminator

    def __init__(
        self, discriminator: nn.Module, weight: schedules.Schedule = 0.1, *, gate: float | None = None
    ) -> None:
        super().__init__(weight)
        if not isinstance(discriminator, nn.Module):
            raise TypeError(f"discriminator: expected a module, got {type(discriminator).__name__}.")
        if gate is not None:
            check_number("gate", gate, 0.0, 1.0, below=True)
        self.discriminator, self.gate = discriminator, gate
        self.needs_teacher = gate is not None

    def __call__(self, batch: DomainBatch, weight: float) -> Tensor:
        """The domain loss; features get ``-weight`` times its gradient."""
        source, target = (reverse_gradient(side.features, weight) for side in (batch.source, batch.target))
        return self._loss(self._logits(source), self._logits(target), batch)

    def further_phases(self, game: Adversaries) -> list[Phase]:
        """One step of the discriminator at the features of the classifier's last step."""
        player = game.make_adversary("discriminator", self.discriminator)

        def of_discriminator(_: Any) -> tuple[Tensor, dict[str, Tensor]]:
            batch = game.last()
            assert batch is not None
            source, target = self._logits(batch.source.features), self._logits(batch.target.features)
            return self._loss(source, target, batch), discriminator_values(source, target)

        return [Phase(player, of_discriminator)]

    def callbacks(self) -> list[Callable[[GameHistory], bool | None]]:
        """A warning if the discriminator collapses."""
        return [DiscriminatorWatch("discriminator")]

    def _loss(self, source: Tensor, target: Tensor, batch: DomainBatch) -> Tensor:
        of_source, of_target = F.softplus(-source).mean(), F.softplus(target)
        if self.gate is None:
            return 0.5 * (of_source + of_target.mean())
        kept = (batch.taught().amax(-1) > self.gate).to(of_target)
        return 0.5 * (of_source + (kept * of_target).sum() / kept.sum().clamp(min=1.0))

    def _logits(self, features: Tensor) -> Tensor:
        found: Tensor = self.discriminator(features)
        if found.shape not in {(len(features),), (len(features), 1)}:
            raise ValueError(
                f"discriminator: expected one logit for each row, [{len(features)}, 1], got {list(found.shape)}."
            )
        return found.reshape(-1)


def domain_discriminator(features: int, width: int = 256) -> nn.Sequential:
    """Two hidden layers of ReLUs, from ``[B, features]`` to ``[B, 1]``.

    Raises:
        ValueError: If a size is no positive int.
    """
    for name, size in (("features", features), ("width", width)):
        check_positive_int(name, size)
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
