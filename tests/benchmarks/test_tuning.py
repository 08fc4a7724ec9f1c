"""The protocol that chooses the settings of the tables in docs/results.md."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks.reproduce import detection, posteriors, structure, uci
from benchmarks.reproduce.experiment import Experiment, Row, arguments, subset, validation_subset
from benchmarks.reproduce.tuning import Scores, Setting, check_budget, check_seeds, choose

SETTINGS = {"a": Setting("rate", 1.0, (1.0, 2.0)), "b": Setting("p", 0.5, (0.1, 0.5))}


def test_the_candidate_with_the_lowest_mean_score_is_chosen() -> None:
    by_seed = [
        {"a": {1.0: 0.30, 2.0: 0.20}, "b": {0.1: 0.5, 0.5: 0.5}},
        {"a": {1.0: 0.10, 2.0: 0.25}, "b": {0.1: 0.5, 0.5: 0.5}},
    ]
    assert choose(by_seed) == {"a": 1.0, "b": 0.1}  # means 0.2 and 0.225; the first of equals


@pytest.mark.parametrize("by_seed", [[], [{"a": {1.0: 0.3}}, {"a": {2.0: 0.3}}], [{"a": {1.0: 0.3}}, {}]])
def test_scores_that_cannot_be_compared_are_refused(by_seed: list[Scores]) -> None:
    with pytest.raises(ValueError, match=r"tuning_seeds: expected one|scores of 'a'"):
        choose(by_seed)


def test_tuning_seeds_are_none_of_the_table() -> None:
    check_seeds([0, 1, 2], [100])
    with pytest.raises(ValueError, match=r"tuning_seeds: .* got \[1\] in both"):
        check_seeds([0, 1, 2], [1, 100])


def test_methods_have_equally_many_candidates() -> None:
    for settings in (posteriors.SETTINGS, structure.SETTINGS, detection.SETTINGS):
        check_budget(settings)
    check_budget({name: method.setting for name, method in uci.METHODS.items()})
    with pytest.raises(ValueError, match="as many candidates for every method"):
        check_budget(SETTINGS | {"c": Setting("rate", 1.0, (1.0, 2.0, 3.0))})


def test_validation_rows_are_none_of_the_training_rows() -> None:
    data = torch.arange(50.0), torch.arange(50)
    (x, y), (held_x, held_y) = validation_subset(data, 30, 20, seed=3)
    assert len(x) == 30
    assert sorted([*y.tolist(), *held_y.tolist()]) == list(range(50))
    torch.testing.assert_close(held_x, held_y.float())
    torch.testing.assert_close(x, subset(data, 30, seed=3)[0])  # what the table's seeds train on does not change


class Recorded:
    """An experiment that notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, dict[str, float]]] = []
        self.experiment = Experiment("Title", self.run, settings=SETTINGS, tune=self.tune)

    def run(self, seed: int, options: argparse.Namespace) -> dict[str, Row]:
        self.calls.append(("run", seed, dict(options.settings)))
        return {name: {"score": value} for name, value in options.settings.items()}

    def tune(self, seed: int, options: argparse.Namespace) -> Scores:
        self.calls.append(("tune", seed, dict(options.settings)))
        return {"a": {1.0: 2.0, 2.0: 1.0}, "b": {0.1: 1.0, 0.5: 2.0}}


def test_settings_are_chosen_before_the_table_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    recorded, chosen = Recorded(), {"a": 2.0, "b": 0.1}
    results = recorded.experiment.main(arguments(""), ["--tune", "--seeds", "0", "1", "--tuning-seeds", "7", "8"])
    defaults = {"a": 1.0, "b": 0.5}
    tuning = [("tune", 7, defaults), ("tune", 8, defaults)]
    assert recorded.calls == [*tuning, ("run", 0, chosen), ("run", 1, chosen)]
    assert results == {"a": [{"score": 2.0}] * 2, "b": [{"score": 0.1}] * 2}
    assert "| a | rate | 1, 2 | 2 |" in capsys.readouterr().out


def test_without_tuning_settings_are_the_defaults() -> None:
    recorded = Recorded()
    recorded.experiment.main(arguments(""), ["--seeds", "0"])
    assert recorded.calls == [("run", 0, {"a": 1.0, "b": 0.5})]


def test_a_reported_seed_is_not_tuned_on() -> None:
    with pytest.raises(ValueError, match="tuning_seeds"):
        Recorded().experiment.main(arguments(""), ["--tune", "--seeds", "0", "--tuning-seeds", "0"])
