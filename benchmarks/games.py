"""One epoch of a game, as a multiple of the same updates written by hand; both alternate in one process.

The game is a generator against a discriminator of two hidden layers, with one step each on every batch. By hand the
opponents' gradients are not computed either, as in ``pyrobnn.training.Game``, and losses are summed as tensors.

    python -m benchmarks.games --hidden 32 128 --rounds 21
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.timing import Alternating, Timing, environment, markdown_table, write_json
from pyrobnn.training import Game, GamePlayer, Phase

INPUTS, LATENT, BATCH, BATCHES = 196, 32, 100, 20


def network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


Losses = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def losses(generator: nn.Module, discriminator: nn.Module) -> Losses:
    """Those of the discriminator and of the generator."""

    def of_discriminator(x: Tensor) -> Tensor:
        with torch.no_grad():
            made = generator(torch.randn(len(x), LATENT))
        return softplus(-discriminator(x)).mean() + softplus(discriminator(made)).mean()

    def of_generator(x: Tensor) -> Tensor:
        return softplus(-discriminator(generator(torch.randn(len(x), LATENT)))).mean()

    return of_discriminator, of_generator


def by_hand(generator: nn.Module, discriminator: nn.Module, batches: list[Tensor]) -> Callable[[], None]:
    """An epoch of plain updates."""
    of_discriminator, of_generator = losses(generator, discriminator)
    of = [torch.optim.Adam(module.parameters(), lr=1e-4, fused=True) for module in (discriminator, generator)]

    def epoch() -> None:
        totals = torch.zeros(2)
        for x in batches:
            loss = of_discriminator(x)
            of[0].zero_grad()
            loss.backward()
            of[0].step()
            totals[0] += loss.detach()
            discriminator.requires_grad_(False)
            loss = of_generator(x)
            of[1].zero_grad()
            loss.backward()
            of[1].step()
            discriminator.requires_grad_(True)
            totals[1] += loss.detach()

    return epoch


def measure(hidden: int, rounds: int, block_seconds: float, clock: str) -> Timing:
    """The game beside the updates by hand, on the same networks and batches."""
    torch.manual_seed(0)
    networks = network(LATENT, hidden, INPUTS), network(INPUTS, hidden, 1)
    batches = [torch.randn(BATCH, INPUTS) for _ in range(BATCHES)]
    turns = Alternating(by_hand(*copy.deepcopy(networks), batches), rounds, block_seconds, clock)
    of_discriminator, of_generator = losses(*networks)
    players = [GamePlayer(name, net, lr=1e-4) for name, net in zip("GD", networks, strict=True)]
    game = Game([Phase(players[1], of_discriminator), Phase(players[0], of_generator)])
    pace = iter(turns)
    game.play(batches, epochs=10**9, progress=False, callbacks=[lambda _: next(pace, _ENDED) is _ENDED])
    return turns.result(f"game, {hidden} units")


_ENDED = object()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--block-seconds", type=float, default=0.3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="cpu")
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    header = environment(1, options.clock)
    timings = [measure(hidden, options.rounds, options.block_seconds, options.clock) for hidden in options.hidden]
    title = f"An epoch of {BATCHES} rounds on batches of {BATCH} beside the same updates by hand"
    print(markdown_table(title, timings))
    if options.json:
        write_json(options.json, header, {title: timings})


if __name__ == "__main__":
    main()
