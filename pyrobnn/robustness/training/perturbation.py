"""Base class of the inner player of adversarial training: what makes the inputs of a batch worse for a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.robustness.attacks.balls import Clip, Norm, ball_of
from pyrobnn.robustness.training.attacked import AttackedNetwork
from pyrobnn.training import Player

__all__ = ["Perturbation"]


class Perturbation(ABC):
    """Makes inputs worse within a ball; subclasses implement :meth:`perturbed`.

    Args:
        epsilon: Radius of the ball, in the inputs' units; 0 leaves inputs as they are.
        clip: Smallest and largest input allowed, such as ``(0.0, 1.0)``; None for no limits.
        norm: ``"linf"``, the maximum norm, or ``"l2"``, the Euclidean norm of the whole input.

    Attributes:
        ball: Where inputs may go.
        label_smoothing: Share of the label that the outer loss gives to the other classes.
        has_players: Whether it has networks of its own, which :meth:`players` train.

    Raises:
        ValueError: If ``epsilon`` is negative or infinite, ``clip`` is no range, or the norm is unknown.
    """

    label_smoothing: float = 0.0
    has_players: ClassVar[bool] = False

    def __init__(self, epsilon: float, clip: Clip = None, norm: Norm = "linf") -> None:
        check_non_negative("epsilon", epsilon, "radius")
        self.ball = ball_of(norm, epsilon, clip)
        self._made_players = False

    @property
    def epsilon(self) -> float:
        """The radius."""
        return self.ball.epsilon

    def __call__(self, network: AttackedNetwork, x: Tensor, y: Tensor, *, keep: bool = False) -> Tensor:
        """Inputs that are worse for the network, of the shape of ``x``.

        Args:
            network: The attacked network.
            x: Inputs ``[B, ...]``.
            y: Targets ``[B, ...]``.
            keep: Whether the outer loss will be differentiated, so that players may learn from it.

        Raises:
            ValueError: If inputs are beyond ``clip``.
        """
        x = x.detach()
        if self.ball.clip is not None and bool(x.isfinite().all()):  # a loss that is not finite has an error of its own
            self.ball.check_range(x)
        return self.perturbed(network, x, y, keep=keep) if self.epsilon else x

    @abstractmethod
    def perturbed(self, network: AttackedNetwork, x: Tensor, y: Tensor, *, keep: bool) -> Tensor:
        """As :meth:`__call__`, for a positive radius and inputs within ``clip``."""

    def begin(self) -> None:  # noqa: B027 (players alone remember)
        """Told that another evaluation of the outer objective begins; nothing by default."""

    def scored(self, log_likelihood: Tensor) -> None:  # noqa: B027 (players alone learn from it)
        """Told the log likelihood at the inputs that were made last, scaled to the data set; nothing by default."""

    def players(self) -> list[Player]:
        """The players to pass to ``fit(players=...)``; none by default."""
        self._made_players = True
        return []

    def check_players(self) -> None:
        """Refuses a perturbation whose networks nobody trains.

        Raises:
            ValueError: If it has players that were never made.
        """
        if self.has_players and not self._made_players:
            raise ValueError(
                f"players: {type(self).__name__} has networks of its own that must be trained; keep it as "
                "`perturbation` and call fit(..., elbo=AdversarialTraining(perturbation), "
                "players=perturbation.players())."
            )
