"""One batch of both domains, as the network sees it under one draw of its weights, and losses on such batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from pyrobnn.core import schedules
from pyrobnn.training import GameHistory, GamePlayer, Phase

__all__ = ["Adversaries", "AlignmentLoss", "Domain", "DomainBatch"]


@dataclass(frozen=True)
class Domain:
    """The inputs of one domain, and what the network makes of them.

    Attributes:
        inputs: The inputs, B rows.
        features: Inputs of the last layer ``[B, F]``, or of the layer that was named.
        logits: Unnormalized logarithms of the class probabilities ``[B, C]``.
    """

    inputs: Any
    features: Tensor
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Class probabilities ``[B, C]``."""
        return self.logits.softmax(-1)


@dataclass(frozen=True)
class DomainBatch:
    """A batch of labeled sources and unlabeled targets.

    Attributes:
        source: The source's side.
        target: The target's side.
        labels: Labels of the source ``[B]``.
        teacher: The teacher's class probabilities of the targets ``[B', C]``; None if no loss needs them.
        other: The targets' logits under another draw (of an ensemble, another member); None if no loss needs them.
        rerun: The network under the same draw on other inputs.
    """

    source: Domain
    target: Domain
    labels: Tensor
    teacher: Tensor | None = None
    other: Tensor | None = None
    rerun: Callable[[Any], Domain] | None = None

    def pseudo_labels(self) -> Tensor:
        """The teacher's classes of the targets ``[B']``."""
        return self.taught().argmax(-1)

    def taught(self) -> Tensor:
        """The teacher's probabilities, which must be there.

        Raises:
            ValueError: If they are not.
        """
        if self.teacher is None:
            raise ValueError("teacher: this loss needs a teacher's probabilities of the targets, but there are none.")
        return self.teacher


@dataclass(frozen=True)
class Adversaries:
    """What losses with phases of their own are given.

    Attributes:
        classifier: The player that is trained on the source.
        source_loss: Minus the ELBO per datum, of a batch of the loader.
        observe: Both domains under one draw, for a batch of the loader, with what the losses need.
        last: The batch of the classifier's last step without its graph; None if alignment was switched off.
        make_player: Makes a player with the classifier's optimizer, of a name and a module.
        make_adversary: Makes one with the adversaries' optimizer.
        step: Number of the present training step.
    """

    classifier: GamePlayer
    source_loss: Callable[[Any], Tensor]
    observe: Callable[[Any, Sequence[AlignmentLoss]], DomainBatch]
    last: Callable[[], DomainBatch | None]
    make_player: Callable[[str, nn.Module], GamePlayer]
    make_adversary: Callable[[str, nn.Module], GamePlayer]
    step: Callable[[], int]


class AlignmentLoss(ABC):
    """A loss that brings two domains together; its gradient reaches the network through features and logits.

    Args:
        weight: Factor relative to the objective per datum, or a schedule ``step -> factor``; 0 switches it off.

    Attributes:
        name: What its value is called.
        needs_teacher: Whether it reads the teacher's probabilities.
        needs_other: Whether it reads logits under another draw.
        in_objective: Whether it is part of the classifier's own objective.
        observes: Whether it needs batches of both domains while its weight is 0, too.

    Raises:
        ValueError: If ``weight`` is negative.
    """

    name: ClassVar[str]
    needs_teacher: bool = False
    needs_other: ClassVar[bool] = False
    in_objective: ClassVar[bool] = True
    observes: ClassVar[bool] = False

    def __init__(self, weight: schedules.Schedule = 1.0) -> None:
        self.weight = schedules.resolve("weight", weight, allow_zero=True, zero_constant=True)

    def weight_at(self, step: int) -> float:
        """The factor at a training step."""
        return schedules.value_at("weight", self.weight, step, allow_zero=True)

    @property
    def is_off(self) -> bool:
        """Whether its weight is 0 at every step."""
        return not callable(self.weight) and self.weight == 0

    @abstractmethod
    def __call__(self, batch: DomainBatch, weight: float) -> Tensor:
        """The loss times its weight, a scalar; gradients of further players' parameters do not carry the weight.

        Args:
            batch: Both domains.
            weight: The factor of this step, positive.
        """

    def further_phases(self, game: Adversaries) -> list[Phase]:
        """What is played after the classifier's own step on each batch; nothing by default.

        Args:
            game: The game so far.
        """
        return []

    def callbacks(self) -> list[Callable[[GameHistory], bool | None]]:
        """What watches its phases, called with the history after each epoch; nothing by default."""
        return []

    def state(self) -> dict[str, Tensor]:
        """What checkpoints must keep of it; nothing by default."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (most losses remember nothing)
        """Restores what :meth:`state` returned; empty for the state before the first step."""
