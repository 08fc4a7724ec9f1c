"""The state of a game: what a checkpoint holds, so that a game that goes on is, bit for bit, one that never stopped."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state, schema
from pyrobnn.core.files import CheckpointError
from pyrobnn.core.module_state import fill
from pyrobnn.core.storage import described, restoring
from pyrobnn.training.game.history import GameHistory
from pyrobnn.training.game.player import PLAYER, GamePlayer
from pyrobnn.training.state import different_tensor

__all__ = ["read_game", "read_modules", "write_game"]

_REAL = schema.either("a number", schema.instance(float, "a float"), schema.whole(-(2**63)))
_TENSORS = schema.table(schema.instance(Tensor, "a tensor"))
_GAME = schema.record(
    {
        "players": schema.items(PLAYER),
        "kept": schema.table(_TENSORS),
        "history": schema.record(
            {
                "terms": schema.table(schema.items(_REAL)),
                "seconds": schema.items(_REAL),
                "rounds": schema.whole(0),
                "planned": schema.whole(0),
                "stopped": schema.text,
            }
        ),
        "random": schema.record({"generators": schema.items(schema.anything)}, others=schema.anything),
    }
)


def read_modules(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """Copies of the parameters and buffers of modules."""
    return {
        key: {name: value.detach().clone() for name, value in module.state_dict().items()}
        for key, module in modules.items()
    }


def read_game(
    players: Sequence[GamePlayer],
    kept: Mapping[str, nn.Module],
    history: GameHistory,
    generators: Sequence[torch.Generator],
) -> dict[str, Any]:
    """The state from which the game can be resumed."""
    return {
        "players": [player.read() for player in players],
        "kept": read_modules(kept),
        "history": history.to_dict(),
        "random": random_state.read_all(generators),
    }


def write_game(
    players: Sequence[GamePlayer],
    kept: Mapping[str, nn.Module],
    history: GameHistory,
    generators: Sequence[torch.Generator],
    state: Any,
    directory: Path,
) -> None:
    """Restores what :func:`read_game` returned, all of it or nothing.

    Raises:
        CheckpointError: If it is damaged.
        ValueError: If the state is that of another game or loader.
    """
    with described("checkpoint", directory, "game"):
        _GAME(state, "state")
    _check_same(players, kept, generators, state)
    before = copy.deepcopy(read_game(players, kept, history, generators))
    try:
        with restoring("checkpoint", directory):
            _restore(players, kept, history, generators, state)
    except CheckpointError:
        _restore(players, kept, history, generators, before)
        raise


def _check_same(
    players: Sequence[GamePlayer],
    kept: Mapping[str, nn.Module],
    generators: Sequence[torch.Generator],
    state: dict[str, Any],
) -> None:
    was, now = [saved["name"] for saved in state["players"]], [player.name for player in players]
    if was != now:
        raise ValueError(f"checkpoint: the game there had the players {was}, but now they are {now}.")
    if list(state["kept"]) != list(kept):
        raise ValueError(f"keep: the game to resume kept {list(state['kept'])}, but now {list(kept)}.")
    for player, saved in zip(players, state["players"], strict=True):
        player.check_same(saved)
    for name, module in kept.items():
        if (difference := different_tensor(module, state["kept"][name])) is not None:
            raise ValueError(f"checkpoint: it is that of another module {name!r}: {difference}.")
    if len(generators) != len(state["random"]["generators"]):
        raise ValueError(
            f"loader: it has {len(generators)} random generators of its own, but in the game to resume there were "
            f"{len(state['random']['generators'])}; build the loader as it was built then."
        )


def _restore(
    players: Sequence[GamePlayer],
    kept: Mapping[str, nn.Module],
    history: GameHistory,
    generators: Sequence[torch.Generator],
    state: dict[str, Any],
) -> None:
    for player, saved in zip(players, state["players"], strict=True):
        player.write(saved)
    for name, module in kept.items():
        fill(module, state["kept"][name])
    for name, value in state["history"].items():
        setattr(history, name, value)
    if history.stopped == "callback":  # the callback is called again
        history.stopped = ""
    random_state.write_all(state["random"], generators)
