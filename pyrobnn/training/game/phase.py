"""A phase of a game's round: who moves, on which loss, and how often."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.training.game.player import GamePlayer

__all__ = ["GameLoss", "Phase"]

GameLoss: TypeAlias = Callable[[Any], Tensor | tuple[Tensor, Mapping[str, Tensor]]]
"""From a batch to the loss, a tensor of no dimension; or to the loss and further values by name, to be reported."""


@explained
@dataclass
class Phase:
    """One of the phases that make a round of a :class:`~pyrobnn.training.Game`, in the order in which they are listed.

    Only the parameters of ``players`` get gradients and move; for the others nothing is computed, so that a loss may
    call their modules without ``detach`` or ``requires_grad_(False)``.

    Args:
        players: Who moves: one player, or several that minimize the same loss.
        loss: A function from a batch to what they minimize, a tensor of no dimension; or to a pair of that and a
            mapping of further values to report, ``history.terms["<name>.<key>"]``.
        steps: Steps in a row.
        fresh: Whether each step takes a batch of its own from the loader. Other phases use the last that was taken.
        name: Its name in the history, ``"<name>.loss"``; None: that of its players, joined by ``"+"``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``steps`` is no positive int, or there is no player.
    """

    players: GamePlayer | Sequence[GamePlayer]
    loss: GameLoss
    steps: int = 1
    fresh: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        given: Any = self.players
        several: list[GamePlayer] = list(given) if isinstance(given, list | tuple) else [given]
        for player in several:
            if not isinstance(player, GamePlayer):
                raise TypeError(f"players: expected GamePlayer, one or a list of them, got {type(player).__name__}.")
        if not several:
            raise ValueError("players: a phase without a player moves nothing.")
        if not callable(self.loss):
            raise TypeError(f"loss: expected a function of a batch, got {self.loss!r}.")
        check_positive_int("steps", self.steps)
        if not isinstance(self.fresh, bool):
            raise TypeError(f"fresh: expected a bool, got {self.fresh!r}.")
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise TypeError(f"name: expected a name for its loss, got {self.name!r}.")
        self.movers: list[GamePlayer] = several
        self.title: str = self.name or "+".join(player.name for player in several)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that move."""
        if len(self.movers) == 1:
            return self.movers[0].trained
        return list({id(p): p for player in self.movers for p in player.trained}.values())

    def evaluate(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss on a batch, and the values to report.

        Raises:
            TypeError: If the function returned something else.
            ValueError: If the loss does not depend on what trains, or is no single number.
        """
        found = self.loss(batch)
        loss, values = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
        if not isinstance(loss, Tensor) or not isinstance(values, Mapping):
            raise TypeError(
                f"loss: that of the phase {self.title!r} returned {type(found).__name__}, expected a tensor, or a pair "
                "of it and a mapping of values."
            )
        if loss.numel() != 1:
            raise ValueError(
                f"loss: that of the phase {self.title!r} has the shape {tuple(loss.shape)}; take its mean."
            )
        if not loss.requires_grad:
            raise ValueError(
                f"loss: that of the phase {self.title!r} has no gradient; compute it from modules of its players, "
                "without detach() or no_grad()."
            )
        return loss, values
