"""The rounds of a game: phases in order, each a step of its players along the gradient of its loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.objectives import NonFiniteLossError
from pyrobnn.training.game.history import GameHistory
from pyrobnn.training.game.phase import Phase
from pyrobnn.training.game.player import GamePlayer

__all__ = ["LOSS", "play_rounds"]

LOSS = ".loss"
"""The end of the names of losses."""

_NONE = object()
_SETTLED_EVERY = 100  # rounds between two checks that all losses are finite, where a check waits for a device

_Row = dict[str, Tensor | float]

AfterRound = Callable[[Mapping[str, Tensor | float], int], None]
"""Is given a round's values, which may not have been read from their device, and its number."""


def play_rounds(
    phases: Sequence[Phase],
    players: Sequence[GamePlayer],
    simultaneous: bool,
    history: GameHistory,
    batches: Iterator[Any],
    count: int | None,
    after: AfterRound | None = None,
) -> list[dict[str, float]]:
    """Plays rounds; see :meth:`~pyrobnn.training.Game.rounds`.

    Args:
        phases: The phases.
        players: All players.
        simultaneous: Whether nobody moves before all gradients are computed.
        history: Its number of rounds goes on.
        batches: The batches.
        count: How many rounds.
        after: Called after each round.

    Raises:
        NonFiniteLossError: If a loss becomes NaN or infinite.
    """
    rows: list[_Row] = []
    settled, before = 0, history.rounds
    while count is None or len(rows) < count:
        row: _Row = {}
        rows.append(row)
        try:
            is_whole = _round(phases, players, simultaneous, history, batches, row)
        except NonFiniteLossError:
            raise
        except Exception:  # perhaps because of an earlier loss, whose value has not been read yet
            _check(rows, settled, before)
            raise
        if not is_whole:
            rows.pop()
            break
        history.rounds += 1
        if after is not None:
            after(row, history.rounds)
        if len(rows) - settled >= _SETTLED_EVERY:
            _check(rows, settled, before)
            settled = len(rows)
    _check(rows, settled, before)
    return rows  # type: ignore[return-value]  # all are numbers now


def _round(
    phases: Sequence[Phase],
    players: Sequence[GamePlayer],
    simultaneous: bool,
    history: GameHistory,
    batches: Iterator[Any],
    row: _Row,
) -> bool:
    """One round; whether there were batches for all of it."""
    batch: Any = _NONE
    if simultaneous:
        for player in players:
            _clear(player.trained)
    for phase in phases:
        for _ in range(phase.steps):
            if phase.fresh or batch is _NONE:
                batch = next(batches, _NONE)
                if batch is _NONE:
                    return False
            _step(phase, batch, row, history.rounds + 1, simultaneous)
    if simultaneous:
        for player in players:
            player.step()
    for player in players:
        player.rates.after_step()
    return True


def _step(phase: Phase, batch: Any, row: _Row, number_of_round: int, simultaneous: bool) -> None:
    loss, values = phase.evaluate(batch)
    for name, value in values.items():
        row[f"{phase.title}.{name}"] = _number(name, torch.as_tensor(value))
    row[phase.title + LOSS] = found = _number("loss", loss)
    if isinstance(found, float) and not math.isfinite(found):
        raise _failure(number_of_round, phase.title, found)
    if simultaneous:
        loss.backward(inputs=phase.trained)
        return
    _clear(phase.trained)
    loss.backward(inputs=phase.trained)
    for player in phase.movers:
        player.step()


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _check(rows: list[_Row], start: int, before: int) -> None:
    """Turns the values of rows into numbers; raises if a loss is not finite."""
    if (found := _settle(rows, start)) is not None:
        index, name, value = found
        raise _failure(before + index + 1, name.removesuffix(LOSS), value)


def _failure(number_of_round: int, phase: str, value: float) -> NonFiniteLossError:
    error = NonFiniteLossError(
        f"round {number_of_round}: the loss of the phase {phase!r} is {value}; lower the learning rates of its players "
        "and opponents, clip their gradients (clip_norm=), or check the batch."
    )
    error.round = number_of_round  # type: ignore[attr-defined]
    return error


def _number(name: str, value: Tensor) -> Tensor | float:
    """The number that a tensor holds; on another device than the CPU the tensor, since reading it would wait."""
    if value.numel() != 1:
        raise ValueError(f"loss: the value {name!r} that it reports has shape {tuple(value.shape)}; take its mean.")
    return value.item() if value.device.type == "cpu" else value.detach()


def _settle(rows: list[_Row], start: int) -> tuple[int, str, float] | None:
    """Turns the values of the rows from ``start`` on into numbers, in place.

    Returns:
        The first loss that is not finite: its row, its name and the value; None if there is none.
    """
    waiting = [(row, name, value) for row in rows[start:] for name, value in row.items() if isinstance(value, Tensor)]
    if waiting:
        numbers = torch.stack([value.double().reshape(()) for _, _, value in waiting]).tolist()
        for (row, name, _), found in zip(waiting, numbers, strict=True):
            row[name] = found
    for index in range(start, len(rows)):
        for name, value in rows[index].items():
            if name.endswith(LOSS) and not math.isfinite(value):
                return index, name, float(value)
    return None
