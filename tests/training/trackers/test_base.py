"""What trackers are given by fit and by games, and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pyrobnn.training import Game, GamePlayer, Phase, fit
from pyrobnn.training.trackers import FunctionTracker, Tracker
from tests.training.game.players import descent, value
from tests.training.networks import loader, model_and_guide, same, tensors


class Recorder:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((step, values))


def test_epochs_are_logged_as_the_history_has_them() -> None:
    recorder = Recorder()
    history = fit(*model_and_guide(), loader(), epochs=2, validation=loader(), trackers=[recorder], progress=False)
    assert [step for step, _ in recorder.calls] == [3, 6]  # three batches an epoch
    for index, (_, values) in enumerate(recorder.calls):
        assert values.pop("epoch") == index + 1
        expected = {name: getattr(history, name)[index] for name in ("elbo", "kl", "validation", "seconds")}
        assert {name: values[name] for name in expected} == expected
        assert set(values) == {
            *("elbo", "log_likelihood", "kl", "loss", "validation", "learning_rate", "seconds"),
            *history.terms,
        }


def test_steps_are_logged_where_it_is_asked_for() -> None:
    """Weighted by their rows, the steps of an epoch have the epoch's mean."""
    recorder = Recorder()
    history = fit(*model_and_guide(), loader(), epochs=1, trackers=[recorder], log_every=1, progress=False)
    steps = [(step, values) for step, values in recorder.calls if "epoch" not in values]
    assert [step for step, _ in steps] == [1, 2, 3]
    mean = sum(rows * values["step/elbo"] for rows, (_, values) in zip((8, 8, 4), steps, strict=True)) / 20
    assert mean == pytest.approx(history.elbo[0])


def test_every_second_step_and_a_function_as_a_tracker() -> None:
    found: list[int] = []
    tracker = FunctionTracker(lambda values, step: found.append(step) if "step/loss" in values else None)
    fit(*model_and_guide(), loader(), epochs=2, trackers=[tracker], log_every=2, progress=False)
    assert found == [2, 4, 6]


def test_tracking_changes_no_number_of_the_training() -> None:
    plain, tracked = model_and_guide(), model_and_guide()
    fit(*plain, loader(), epochs=2, seed=0, progress=False)
    fit(*tracked, loader(), epochs=2, seed=0, trackers=[Recorder()], log_every=1, progress=False)
    assert same(tensors(*plain), tensors(*tracked))


def test_a_resumed_run_goes_on_with_its_steps(tmp_path: Any) -> None:
    first, second = Recorder(), Recorder()
    fit(*model_and_guide(), loader(), epochs=1, trackers=[first], checkpoint=tmp_path, progress=False)
    fit(*model_and_guide(), loader(), epochs=2, trackers=[second], checkpoint=tmp_path, resume=True, progress=False)
    assert [step for step, _ in first.calls + second.calls] == [3, 6]


def test_games_log_rounds_and_epochs() -> None:
    recorder = Recorder()
    x: GamePlayer = descent("x", 1.0, 0.1)
    game = Game([Phase(x, lambda _: 0.5 * value(x.module) ** 2)])
    game.play([0] * 3, epochs=2, trackers=[recorder], log_every=3, progress=False)
    assert [step for step, _ in recorder.calls] == [3, 3, 6, 6]
    name = next(iter(game.history.terms))
    assert recorder.calls[0][1] == {f"step/{name}": pytest.approx(0.5 * 0.9**4)}  # the third round, after two steps
    assert recorder.calls[1][1] == {name: game.history.terms[name][0], "seconds": game.history.seconds[0], "epoch": 1.0}


def test_what_is_no_tracker_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^trackers: expected objects with a method log.*FunctionTracker"):
        fit(*model_and_guide(), loader(), trackers=[print])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^trackers: expected a list"):
        fit(*model_and_guide(), loader(), trackers=Recorder())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^log_every: expected a positive int"):
        fit(*model_and_guide(), loader(), log_every=0)
    with pytest.raises(TypeError, match=r"^function: "):
        FunctionTracker(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^trackers: "):
        Game([Phase(descent("x", 1.0), lambda _: torch.zeros(()))]).play([0], epochs=1, trackers=[nn.Tanh])  # type: ignore[list-item]


def test_the_protocol_is_one_method() -> None:
    assert isinstance(Recorder(), Tracker)
    assert not isinstance(object(), Tracker)
