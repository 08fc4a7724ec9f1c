"""Warnings about discriminators that have collapsed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from pyrobnn.training import DiscriminatorWatch, Game, Phase, discriminator_values
from tests.training.game.players import descent, value


def played(real: float, fake: float, spread: float, epochs: int = 4) -> None:
    x = descent("D", 1.0)

    def loss(_: object) -> tuple[Tensor, dict[str, Tensor]]:
        noise = spread * torch.tensor([-1.0, 1.0])
        return value(x.module), discriminator_values(real + noise, fake + noise)

    Game([Phase(x, loss)]).play([0], epochs=epochs, progress=False, callbacks=[DiscriminatorWatch("D", patience=3)])


def test_values_are_mean_probabilities_and_the_deviation_of_logits() -> None:
    found = discriminator_values(torch.tensor([[1.0], [3.0]]), torch.tensor([[-2.0], [0.0]]))
    assert float(found["real"]) == pytest.approx(float(torch.tensor([1.0, 3.0]).sigmoid().mean()))
    assert float(found["fake"]) == pytest.approx(float(torch.tensor([-2.0, 0.0]).sigmoid().mean()))
    assert float(found["spread"]) == pytest.approx(float(torch.tensor([1.0, 3.0, -2.0, 0.0]).std(correction=0)))


def test_a_discriminator_that_is_certain_is_warned_about_once() -> None:
    with pytest.warns(UserWarning, match=r"'D' has collapsed: for 3 epochs it tells all .*real 0.99.*fake 0") as told:
        played(8.0, -8.0, 1.0)
    assert len(told) == 1
    assert told[0].filename.endswith("test_discriminators.py")


def test_a_discriminator_with_one_answer_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="gives all inputs the same logit"):
        played(0.3, 0.3, 0.0)


@pytest.mark.parametrize(("real", "fake", "spread", "epochs"), [(0.5, -0.5, 1.0, 4), (8.0, -8.0, 1.0, 2)])
def test_an_open_game_is_not(real: float, fake: float, spread: float, epochs: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        played(real, fake, spread, epochs)


def test_a_phase_that_reports_nothing_is_refused() -> None:
    x = descent("D", 1.0)
    game = Game([Phase(x, lambda _: value(x.module))])
    with pytest.raises(ValueError, match=r"phase: the history has no 'D.real'"):
        game.play([0], epochs=1, progress=False, callbacks=[DiscriminatorWatch("D")])
