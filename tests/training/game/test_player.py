"""Players of a game: averages, schedules, clipping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrobnn.training import Game, GamePlayer, Phase
from tests.training.game.players import descent, value


def test_the_average_follows_its_recursion() -> None:
    """Loss x with lr 1: x is 9, 8, 7, ... after the steps."""
    x = descent("x", 10.0, 1.0, averaging=0.5)
    game = Game([Phase(x, lambda _: value(x.module))])
    expected, found = 10.0, []
    for step in range(15):
        decay = min(0.5, step / (step + 10.0))
        expected = decay * expected + (1.0 - decay) * (9.0 - step)
        game.rounds(iter([0]), 1)
        assert x.average is not None
        found.append((float(value(x.average)), expected))
    assert [one for one, _ in found] == pytest.approx([other for _, other in found])
    assert not value(x.average).requires_grad


def test_the_average_has_the_buffers_of_the_module() -> None:
    norm = nn.BatchNorm1d(1)
    player = GamePlayer("n", norm, averaging=0.9)
    Game([Phase(player, lambda x: norm(x).square().mean())]).rounds(iter([torch.tensor([[1.0], [3.0]])]))
    assert isinstance(player.average, nn.BatchNorm1d)
    assert player.average.running_mean is not norm.running_mean
    torch.testing.assert_close(player.average.running_mean, norm.running_mean)
    assert not player.average.training


def test_gradients_are_clipped() -> None:
    x = descent("x", 1.0, 1.0, clip_norm=0.25)
    Game([Phase(x, lambda _: 100.0 * value(x.module))]).rounds(iter([0]))
    assert float(value(x.module).detach()) == pytest.approx(0.75, abs=1e-4)


@pytest.mark.parametrize(("per", "expected"), [("round", 0.5**4), ("epoch", 0.5**2)])
def test_schedules_advance_by_rounds_or_epochs(per: str, expected: float) -> None:
    halved = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # noqa: E731
    x = descent("x", 1.0, 1.0, scheduler=halved, scheduler_per=per)
    Game([Phase(x, lambda _: value(x.module))]).play([0, 0], epochs=2, progress=False)
    assert x.torch_optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_a_schedule_on_a_plateau_watches_the_loss() -> None:
    made = lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)  # noqa: E731
    x = descent("x", 1.0, 1.0, scheduler=made, scheduler_per="epoch")
    Game([Phase(x, lambda _: value(x.module) * 0.0 + 3.0)]).play([0], epochs=2, progress=False)
    assert x.torch_optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_parameters_may_stand_for_a_module() -> None:
    net = nn.Linear(2, 1)
    player = GamePlayer("w", [net.weight], torch.optim.SGD, 0.1)
    before = net.bias.detach().clone()
    Game([Phase(player, lambda x: net(x).sum())]).rounds(iter([torch.ones(1, 2)]))
    assert torch.equal(before, net.bias)
    assert net.bias.grad is None
    with pytest.raises(TypeError, match="module: the player 'w' expected a torch module or a list"):
        GamePlayer("w", net.weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="module: the player 'w' has no parameter"):
        GamePlayer("w", nn.ReLU())
