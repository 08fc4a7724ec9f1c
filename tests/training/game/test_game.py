"""The loop of a game, against games in closed form and against the same updates written by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn.objectives import NonFiniteLossError
from pyrobnn.training import Game, GameHistory, GamePlayer, Phase
from tests.training.game.players import descent, value

LR = 0.1


def bilinear(simultaneous: bool) -> tuple[Game, GamePlayer, GamePlayer]:
    """min over x, max over y of x y, from (1, 1)."""
    x, y = descent("x", 1.0, LR), descent("y", 1.0, LR)
    phases = [
        Phase(x, lambda _: value(x.module) * value(y.module)),
        Phase(y, lambda _: -value(x.module) * value(y.module)),
    ]
    return Game(phases, simultaneous=simultaneous), x, y


def test_simultaneous_updates_of_the_bilinear_game_spiral_outward() -> None:
    """Each round multiplies x + iy by 1 + i lr."""
    game, x, y = bilinear(True)
    game.play([0] * 5, epochs=2, progress=False)
    expected = complex(1.0, 1.0) * complex(1.0, LR) ** 10
    assert complex(float(value(x.module).detach()), float(value(y.module).detach())) == pytest.approx(expected)


def test_alternating_updates_of_the_bilinear_game_stay_on_an_ellipse() -> None:
    """x² + y² + lr x y, an invariant of the symplectic map, keeps its value; the other update does not keep it."""
    game, x, y = bilinear(False)
    game.play([0] * 5, epochs=20, progress=False)
    a, b = float(value(x.module).detach()), float(value(y.module).detach())
    assert a * a + b * b - LR * a * b == pytest.approx(2.0 - LR)
    assert game.history.rounds == 100


def test_only_the_players_of_a_phase_get_gradients() -> None:
    x, y = descent("x", 1.0), descent("y", 2.0)
    game = Game([Phase(x, lambda _: (value(x.module) * value(y.module)).square())])
    game.play([0], epochs=1, progress=False)
    assert value(y.module).grad is None
    assert float(value(y.module).detach()) == 2.0
    assert float(value(x.module).detach()) == pytest.approx(1.0 - 0.1 * 8.0)


def test_several_players_may_minimize_one_loss() -> None:
    x, y = descent("x", 1.0, 0.1), descent("y", 1.0, 0.2)
    game = Game([Phase([x, y], lambda _: 0.5 * (value(x.module) ** 2 + value(y.module) ** 2))])
    game.play([0] * 3, epochs=1, progress=False)
    assert list(game.history.terms) == ["x+y.loss"]
    assert float(value(x.module).detach()) == pytest.approx(0.9**3)
    assert float(value(y.module).detach()) == pytest.approx(0.8**3)


def test_a_player_of_two_simultaneous_phases_moves_once_along_the_sum() -> None:
    x = descent("x", 0.0)
    game = Game(
        [Phase(x, lambda _: value(x.module)), Phase(x, lambda _: 2.0 * value(x.module), name="twice")],
        simultaneous=True,
    )
    game.play([0], epochs=1, progress=False)
    assert float(value(x.module).detach()) == pytest.approx(-0.3)
    assert x.steps == 1


def test_fresh_phases_take_a_batch_for_each_step() -> None:
    """Of seven batches, three a round: the last one begins a round that the end cuts short."""
    seen: dict[str, list[int]] = {"x": [], "y": []}
    x, y = descent("x", 1.0), descent("y", 1.0)

    def loss(player: GamePlayer) -> Any:
        def of(batch: int) -> Tensor:
            seen[player.name].append(batch)
            return value(player.module).square()

        return of

    game = Game([Phase(x, loss(x), steps=3, fresh=True), Phase(y, loss(y), steps=2)])
    history = game.play(list(range(7)), epochs=1, progress=False)
    assert seen == {"x": [0, 1, 2, 3, 4, 5, 6], "y": [2, 2, 5, 5]}
    assert history.rounds == 2
    with pytest.raises(ValueError, match="loader: it yielded too few batches for a round"):
        Game([Phase(x, loss(x), steps=3, fresh=True)]).play([1, 2], epochs=1, progress=False)


def test_history_holds_means_over_rounds_of_losses_and_reported_values() -> None:
    x = descent("x", 1.0, lr=0.0)
    game = Game([Phase(x, lambda batch: (value(x.module) * batch, {"double": 2.0 * torch.tensor(batch)}))])
    calls: list[int] = []
    history = game.play([1.0, 3.0], epochs=3, progress=False, callbacks=[lambda h: calls.append(h.epochs) or None])
    assert history.terms == {"x.double": [4.0] * 3, "x.loss": [2.0] * 3}
    assert (calls, history.stopped, history.planned) == ([1, 2, 3], "epochs", 3)
    assert history.last("x.loss") == 2.0
    assert "x.loss 2" in history.summary()
    with pytest.raises(KeyError, match="no term 'z'"):
        history.last("z")
    assert game.play([1.0], epochs=9, progress=False, callbacks=[lambda h: h.epochs == 4]).stopped == "callback"
    assert history.epochs == 4


def gan(**options: Any) -> tuple[Game, nn.Module, nn.Module, list[GamePlayer]]:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
    critic = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    g = GamePlayer("G", generator, lr=1e-2, averaging=0.9, **options)
    d = GamePlayer("D", critic, lr=1e-2, scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.99))

    def of_critic(batch: Any) -> Tensor:
        real, fake = critic(batch[0]), critic(generator(torch.randn(len(batch[0]), 2)))
        return nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()

    def of_generator(batch: Any) -> Tensor:
        return nn.functional.softplus(-critic(generator(torch.randn(len(batch[0]), 2)))).mean()

    return Game([Phase(d, of_critic, steps=2), Phase(g, of_generator)]), generator, critic, [g, d]


def loader(own_generator: bool = True) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(4) if own_generator else None
    x = torch.linspace(-1.0, 1.0, 40)[:, None]
    return DataLoader(TensorDataset(x), batch_size=10, shuffle=True, generator=generator)


def test_a_game_is_the_same_updates_written_by_hand() -> None:
    game, generator, critic, _ = gan()
    game.play(loader(), epochs=3, seed=7, progress=False)
    by_hand, other, opponent, _ = gan()
    torch.manual_seed(7)
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-2, fused=True) for module in (opponent, other)]
    rates = torch.optim.lr_scheduler.ExponentialLR(optimizers[0], 0.99)
    data = loader()
    for _ in range(3):
        for batch in data:
            for phase, optimizer, steps in zip(by_hand.phases, optimizers, (2, 1), strict=True):
                for _ in range(steps):
                    optimizer.zero_grad()
                    phase.loss(batch).backward()  # type: ignore[union-attr]
                    optimizer.step()
            rates.step()
    for own, theirs in zip([generator, critic], [other, opponent], strict=True):
        for (name, found), expected in zip(own.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(found, expected), name


def states(game: Game) -> list[Tensor]:
    modules = [player.module for player in game.players] + [p.average for p in game.players if p.average is not None]
    return [tensor for module in modules for tensor in module.state_dict().values()]


@pytest.mark.parametrize("own_generator", [True, False])
def test_a_resumed_game_goes_on_bit_for_bit(tmp_path: Path, own_generator: bool) -> None:
    whole = gan()[0]
    expected = whole.play(loader(own_generator), epochs=4, seed=1, progress=False)
    gan()[0].play(loader(own_generator), epochs=2, seed=1, progress=False, checkpoint=tmp_path)
    game = gan()[0]
    found = game.play(loader(own_generator), epochs=4, seed=5, progress=False, checkpoint=tmp_path, resume=True)
    assert found.terms == expected.terms
    for one, other in zip(states(whole), states(game), strict=True):
        assert torch.equal(one, other)
    again = gan()[0].play(loader(own_generator), epochs=4, progress=False, checkpoint=tmp_path, resume=True)
    assert again.to_dict() == found.to_dict()


def test_kept_modules_are_part_of_the_state(tmp_path: Path) -> None:
    def game() -> tuple[Game, nn.Module]:
        x, kept = descent("x", 1.0), nn.BatchNorm1d(1, affine=False, dtype=torch.float64)

        def loss(batch: float) -> Tensor:
            kept(torch.tensor([[batch], [batch + 1.0]], dtype=torch.float64))
            return value(x.module).square()

        return Game([Phase(x, loss)], keep={"norm": kept}), kept

    first, kept = game()
    first.play([1.0, 2.0], epochs=1, progress=False, checkpoint=tmp_path)
    second, other = game()
    second.play([1.0, 2.0], epochs=1, progress=False, checkpoint=tmp_path, resume=True)
    assert torch.equal(kept.running_mean, other.running_mean)
    assert float(other.running_mean) != 0.0
    nobody = Game([Phase(descent("x", 1.0), lambda _: torch.zeros(()))])
    with pytest.raises(ValueError, match="keep: the game to resume kept"):
        nobody.play([1.0], epochs=2, progress=False, checkpoint=tmp_path, resume=True)


def test_a_checkpoint_of_another_game_is_refused(tmp_path: Path) -> None:
    gan()[0].play(loader(), epochs=1, progress=False, checkpoint=tmp_path)
    x = descent("x", 1.0)
    other = Game([Phase(x, lambda _: value(x.module))])
    with pytest.raises(ValueError, match=r"checkpoint: the game there had the players \['D', 'G'\], but now .*\['x'\]"):
        other.play([0], epochs=2, progress=False, checkpoint=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"checkpoint: the player 'G' had .*ExponentialLR"):
        gan(scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9))[0].play(
            loader(), epochs=2, progress=False, checkpoint=tmp_path, resume=True
        )


def test_a_loss_that_is_not_finite_names_phase_and_round_and_undoes_the_epoch() -> None:
    x, y = descent("x", 1.0), descent("y", 1.0)

    def loss(batch: float) -> Tensor:
        return value(y.module) * batch

    game = Game([Phase(x, lambda _: value(x.module).square()), Phase(y, loss, name="second")])
    with pytest.raises(NonFiniteLossError, match=r"epoch 1: round 3: the loss of the phase 'second' is nan") as failed:
        game.play([1.0, 2.0, math.nan], epochs=2, progress=False)
    assert isinstance(failed.value.history, GameHistory)  # type: ignore[attr-defined]
    assert float(value(x.module).detach()) == 1.0
    game = Game([Phase(x, lambda _: value(x.module) * 1e308)])
    x.torch_optimizer.param_groups[0]["lr"] = 1e10
    with pytest.raises(NonFiniteLossError, match="player 'x' made its parameters NaN or infinite"):
        game.play([1.0], epochs=1, progress=False)
    assert float(value(x.module).detach()) == 1.0


def test_modes_are_restored() -> None:
    game, generator, critic, _ = gan()
    generator.eval()
    game.play(loader(), epochs=1, progress=False)
    assert not generator[2].training
    assert critic.training


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda _: 3.0, TypeError, "returned float"),
        (lambda _: torch.zeros(()), ValueError, "'x' has no gradient"),
        (lambda _: torch.zeros(3, requires_grad=True), ValueError, r"'x' has the shape \(3,\)"),
        (lambda _: (torch.zeros((), requires_grad=True), {"a": torch.zeros(2)}), ValueError, "'a' that it reports"),
    ],
)
def test_losses_of_the_wrong_kind_are_refused(loss: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^loss: .*{message}"):
        Game([Phase(descent("x", 1.0), loss)]).play([0], epochs=1, progress=False)


def test_games_that_make_no_sense_are_refused() -> None:
    x = descent("x", 1.0)
    phase = Phase(x, lambda _: value(x.module))
    with pytest.raises(ValueError, match="phases: two are named 'x'"):
        Game([phase, Phase(x, lambda _: value(x.module))])
    with pytest.raises(ValueError, match="phases: two players are named 'x'"):
        Game([phase, Phase(descent("x", 2.0), lambda _: value(x.module), name="other")])
    with pytest.raises(ValueError, match="simultaneous: all players step once"):
        Game([Phase(x, phase.loss, steps=2)], simultaneous=True)
    with pytest.raises(TypeError, match="loader: a list_iterator is used up"):
        Game([phase]).play(iter([0]), epochs=1, progress=False)
    with pytest.raises(ValueError, match="resume: nothing to resume from"):
        Game([phase]).play([0], epochs=1, progress=False, resume=True)
