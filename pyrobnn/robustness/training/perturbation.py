"""Base class of the inner player of adversarial training: what makes the inputs of a batch worse for a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.robustness.training.attacked import AttackedNetwork
from pyrobnn.training import Player

__all__ = ["Clip", "Perturbation"]

Clip = tuple[float, float] | None
"""Smallest and largest input allowed; None for no limits."""


class Perturbation(ABC):
    """Makes inputs worse within a ball; subclasses implement :meth:`perturbed`.

    Args:
        epsilon: Radius of the ball, in the inputs' units; 0 leaves inputs as they are.
        clip: Smallest and largest input allowed, such as ``(0.0, 1.0)``; None for no limits.

    Attributes:
        label_smoothing: Share of the label that the outer loss gives to the other classes.

    Raises:
        ValueError: If ``epsilon`` is negative, or ``clip`` is no range.
    """

    label_smoothing: float = 0.0
    has_players: ClassVar[bool] = False

    def __init__(self, epsilon: float, clip: Clip = None) -> None:
        check_non_negative("epsilon", epsilon, "radius")
        if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
            raise ValueError(f"clip: expected (smallest, largest), got {clip!r}.")
        self.epsilon, self.clip = float(epsilon), clip
        self._made_players = False

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
        if self.clip is not None and bool(((x < self.clip[0]) | (x > self.clip[1])).any()):
            raise ValueError(
                f"clip: inputs reach from {float(x.min()):.4g} to {float(x.max()):.4g}, beyond {self.clip}; pass the "
                "range of your inputs, or None."
            )
        if not self.epsilon:
            return x
        return self.perturbed(network, x, y, keep=keep)

    @abstractmethod
    def perturbed(self, network: AttackedNetwork, x: Tensor, y: Tensor, *, keep: bool) -> Tensor:
        """As :meth:`__call__`, for a positive radius and inputs within ``clip``."""

    def scored(self, log_likelihood: Tensor, num_data: int) -> None:  # noqa: B027 (players alone learn from it)
        """Told the log likelihood at the inputs that were made last, scaled to N data; nothing by default."""

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

    def clipped(self, x: Tensor) -> Tensor:
        """Inputs within ``clip``."""
        return x if self.clip is None else x.clamp(*self.clip)
