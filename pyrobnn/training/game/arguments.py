"""Checks of a game's arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from pyrobnn.core.arguments import check_device, check_positive_int
from pyrobnn.training.game.phase import Phase
from pyrobnn.training.game.player import GamePlayer

__all__ = ["check_phases", "check_play", "players_of"]


def check_phases(phases: Any, simultaneous: Any, keep: Any) -> None:
    """Refuses what makes no round.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If there is no phase, two have one name, or what is simultaneous has several steps.
    """
    if not isinstance(phases, list | tuple) or not all(isinstance(phase, Phase) for phase in phases):
        raise TypeError(f"phases: expected a list of pyrobnn.training.Phase(...), got {phases!r}.")
    if not phases:
        raise ValueError("phases: there is none, so that nobody would move.")
    if not isinstance(simultaneous, bool):
        raise TypeError(f"simultaneous: expected a bool, got {simultaneous!r}.")
    titles = [phase.title for phase in phases]
    for title in titles:
        if titles.count(title) > 1:
            raise ValueError(f"phases: two are named {title!r}; name one of them, Phase(..., name='...').")
    if simultaneous and any(phase.steps > 1 or phase.fresh for phase in phases):
        raise ValueError("simultaneous: all players step once in a round, from one batch; use steps=1, fresh=False.")
    if not isinstance(keep, Mapping) or not all(isinstance(module, nn.Module) for module in keep.values()):
        raise TypeError(f"keep: expected a mapping of torch modules, got {keep!r}.")
    names = [player.name for player in players_of(phases)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"phases: two players are named {name!r}.")


def players_of(phases: Sequence[Phase]) -> list[GamePlayer]:
    """The players of all phases, each once, in the order in which they first move."""
    return list({id(player): player for phase in phases for player in phase.movers}.values())


def check_play(loader: Any, epochs: Any, callbacks: Any, device: Any, checkpoint: Any, resume: Any) -> None:
    """Refuses what cannot be played.

    Raises:
        TypeError: If something is of the wrong kind, or the loader is used up after one pass.
        ValueError: If a value is outside its range.
    """
    if not isinstance(loader, Iterable) or isinstance(loader, str | Mapping):
        raise TypeError(f"loader: expected a DataLoader or a list of batches, got {type(loader).__name__}.")
    if isinstance(loader, Iterator):
        raise TypeError(
            f"loader: a {type(loader).__name__} is used up after one epoch; pass a DataLoader or a list of batches."
        )
    check_positive_int("epochs", epochs)
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks: expected a list of functions of the history, got {callbacks!r}.")
    for callback in callbacks:
        if not callable(callback) or isinstance(callback, type):
            raise TypeError(f"callbacks: expected functions of the history, got {callback!r}.")
    check_device("device", device)
    if resume and checkpoint is None:
        raise ValueError("resume: nothing to resume from; pass checkpoint= the directory of the earlier game.")
