r"""The loop of a game: players take turns, each on an objective of its own.

A round goes through the phases in order. In each, the loss is computed on a batch, differentiated with respect to the
parameters of the phase's players alone, and these take a step,

.. math::  \theta_i \leftarrow \theta_i - \eta_i \nabla_{\theta_i} L_i(\theta_1, \dots, \theta_n),

where the other players' parameters are those after the phases before (alternating updates, as in Goodfellow et al.,
*Generative Adversarial Nets*, 2014), or with ``simultaneous=True`` those at the start of the round.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from pyrobnn.core import random_state
from pyrobnn.core.batches import num_batches
from pyrobnn.core.denormals import denormals_as_zero
from pyrobnn.core.exclusive import in_one_thread
from pyrobnn.core.explanations import explained
from pyrobnn.core.files import check_directory
from pyrobnn.core.gradient_modes import gradients_enabled, refuse_inference_tensors
from pyrobnn.core.module_state import fill, modes_restored
from pyrobnn.core.processes import refuse_process_group
from pyrobnn.core.progress import progress_bar
from pyrobnn.core.storage import write_state
from pyrobnn.core.trees import to_device
from pyrobnn.objectives import NonFiniteLossError
from pyrobnn.training.game.arguments import check_phases, check_play, players_of
from pyrobnn.training.game.history import GameHistory
from pyrobnn.training.game.phase import Phase
from pyrobnn.training.game.player import GamePlayer
from pyrobnn.training.game.resume import read_game, read_modules, write_game
from pyrobnn.training.game.rounds import LOSS, play_rounds
from pyrobnn.training.recording import recorded
from pyrobnn.training.state import generators
from pyrobnn.training.trackers.base import Tracker, TrackerCalls

__all__ = ["Game"]

GameCallback = Callable[[GameHistory], bool | None]


@explained
class Game:
    """Players that take turns: the loop for what is no single minimization, such as adversarial training.

    A generator ``G`` of one number against a discriminator ``D``, with one step each on every batch:

    .. code-block:: python

        def of_discriminator(x):
            real, fake = D(x), D(G(torch.randn(len(x), 2)).detach())
            return F.softplus(-real).mean() + F.softplus(fake).mean()

        def of_generator(x):
            return F.softplus(-D(G(torch.randn(len(x), 2)))).mean()

        d, g = GamePlayer("D", D, lr=1e-3), GamePlayer("G", G, lr=1e-3, averaging=0.99)
        game = Game([Phase(d, of_discriminator), Phase(g, of_generator)])
        history = game.play(loader, epochs=20, seed=0)

    Losses that change with time read ``game.history.epochs`` or ``game.history.rounds``.

    Args:
        phases: The phases of a round, in order.
        simultaneous: Whether all gradients are computed before any player moves. A player of several phases then moves
            once, along the sum of its gradients.
        keep: Further modules by name that belong to the state of the game but are no player's, such as the running
            centroids of a loss: they are in its checkpoints, and put back where a loss is not finite.

    Attributes:
        players: All players.
        history: The record.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If there is no phase, or two phases or players have the same name.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        *,
        simultaneous: bool = False,
        keep: Mapping[str, nn.Module] | None = None,
    ) -> None:
        check_phases(phases, simultaneous, {} if keep is None else keep)
        self.phases, self.simultaneous = list(phases), simultaneous
        self.players: list[GamePlayer] = players_of(phases)
        self.keep = dict(keep or {})
        self.history = GameHistory()

    def play(
        self,
        loader: Iterable[Any],
        *,
        epochs: int,
        callbacks: Sequence[GameCallback] = (),
        trackers: Sequence[Tracker] = (),
        log_every: int | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        progress: bool = True,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> GameHistory:
        """Plays rounds on the batches of a loader.

        Args:
            loader: Yields batches of whatever form the losses take.
            epochs: Passes over the loader, in all: a game that has been played goes on up to this number. A round that
                the loader's end cuts short (``Phase(fresh=True)``) ends there.
            callbacks: Called with the history after each epoch; one that returns True ends the game.
            trackers: Objects with a method ``log(values, step)``, which is called after each epoch
                (:mod:`pyrobnn.training.trackers`); a step is a round.
            log_every: Rounds between further calls of trackers, with the values of a single round.
            seed: Seeds torch, NumPy, Python and Pyro for this call; their states are restored afterwards.
            device: Moves players, kept modules and each batch there.
            progress: Show a progress bar.
            checkpoint: A directory to which the state is saved after each epoch. No other run may write to it.
            resume: Continue from ``checkpoint`` if it is there, bit for bit as if the game had never stopped.

        Returns:
            The history. Ctrl-C ends the game early.

        Raises:
            NonFiniteLossError: If a loss becomes NaN or infinite: the message names the phase and the round. The state
                at the start of the epoch is restored, ``error.history`` holds what happened until then.
            TypeError: If an argument or a loss is of the wrong kind.
            ValueError: If the loader has too few batches for a round, or ``checkpoint`` is that of another game.
            CheckpointError: If what ``checkpoint`` holds is damaged; a ValueError.
            RuntimeError: In a process group of several processes.
            DirectoryInUseError: If another process or thread writes to ``checkpoint``.
        """
        refuse_process_group("Game.play")
        check_play(loader, epochs, callbacks, device, checkpoint, resume)
        calls = TrackerCalls(trackers, log_every)
        directory = None if checkpoint is None else check_directory("checkpoint", checkpoint)
        modules = self._modules()
        refuse_inference_tensors(**modules)
        self.history.stopped = ""
        with contextlib.ExitStack() as stack:
            stack.enter_context(gradients_enabled())
            stack.enter_context(in_one_thread(**modules))
            stack.enter_context(random_state.local(seed))
            stack.enter_context(denormals_as_zero())
            if device is not None:
                for player in self.players:
                    player.to(device)
                for module in self.keep.values():
                    module.to(device)
            random = generators(loader)

            def restore(state: Any, found: Path) -> None:
                write_game(self.players, self.keep, self.history, random, state, found)

            def is_finished() -> bool:
                return bool(self.history.stopped) or self.history.epochs >= epochs

            stack.enter_context(recorded(directory, resume, restore, is_finished, "Game.play"))
            self._check_rates(epochs, num_batches(loader))
            self.history.planned = epochs
            for player in self.players:
                stack.enter_context(modes_restored(player.module))
                player.module.train()
            bar = stack.enter_context(
                progress_bar(total=epochs, initial=self.history.epochs, shown=progress, unit="epoch")
            )
            with contextlib.suppress(KeyboardInterrupt):
                while not is_finished():
                    self._epoch(loader, device, calls)
                    bar.set_postfix_str(self.history.summary())
                    bar.update()
                    calls.after_epoch(self.history.latest, self.history.epochs, self.history.rounds)
                    for callback in callbacks:
                        if callback(self.history) is True:
                            self.history.stopped = "callback"
                    if directory is not None:
                        write_state(directory, read_game(self.players, self.keep, self.history, random), "checkpoint")
                self.history.stopped = self.history.stopped or "epochs"
            self.history.stopped = self.history.stopped or "interrupted"
        return self.history

    def rounds(self, batches: Iterator[Any], count: int | None = None) -> list[dict[str, float]]:
        """Plays rounds without epochs: for loops whose batches make none. It leaves modes of modules alone.

        Args:
            batches: The batches, one for a round and one for each step of phases that are ``fresh``.
            count: How many rounds; None: until the batches end.

        Returns:
            What the phases report, one entry for each round: of a phase of several steps, that of the last.

        Raises:
            NonFiniteLossError: If a loss becomes NaN or infinite; ``error.round`` is the round's number, from 1. On a
                CPU no step has been taken on it, elsewhere some may have been.
        """
        return play_rounds(self.phases, self.players, self.simultaneous, self.history, batches, count)

    def _epoch(self, loader: Iterable[Any], device: torch.device | str | None, calls: TrackerCalls) -> None:
        """One pass over the loader; the history is written when all of it is done."""
        started, modules = time.perf_counter(), self._modules()
        good = read_modules(modules)
        batches = (to_device(batch, device) for batch in loader)
        try:
            rows = play_rounds(
                self.phases, self.players, self.simultaneous, self.history, batches, None, calls.after_step
            )
            if not rows:
                raise ValueError("loader: it yielded too few batches for a round; see Phase(fresh=, steps=).")
            for player in self.players:
                if not all(bool(parameter.isfinite().all()) for parameter in player.trained):
                    raise NonFiniteLossError(
                        f"the last steps of the player {player.name!r} made its parameters NaN or infinite; lower lr."
                    )
        except NonFiniteLossError as error:
            for name, module in modules.items():
                fill(module, good[name])
            epoch = self.history.epochs + 1
            failure = NonFiniteLossError(f"epoch {epoch}: {error} The state at its start was restored.")
            failure.history = self.history  # type: ignore[attr-defined]
            raise failure from error
        names = dict.fromkeys(name for row in rows for name in row)
        entries = {name: fmean(row[name] for row in rows if name in row) for name in names}
        self.history.append(entries, time.perf_counter() - started)
        for player in self.players:
            title = next(phase.title for phase in self.phases if player in phase.movers)
            player.rates.after_epoch(-entries[title + LOSS])

    def _check_rates(self, epochs: int, batches: int | None) -> None:
        taken = max(1, sum(phase.steps for phase in self.phases if phase.fresh) + (not self.phases[0].fresh))
        for player in self.players:
            player.rates.check(epochs, None if batches is None else batches // taken)

    def _modules(self) -> dict[str, nn.Module]:
        """The modules of players and those that are kept, by names for messages."""
        own = {f"player {player.name!r}": player.module for player in self.players}
        averages = {f"average of {p.name!r}": p.average for p in self.players if p.average is not None}
        return own | averages | {f"keep[{name!r}]": module for name, module in self.keep.items()}
