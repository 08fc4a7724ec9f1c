"""The loop of active learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.decisions import BALD, EPIG, ActiveLearning, BatchBALD, CoreSet, Entropy, Random
from pyrobnn.decisions.acquisition import Acquisition

GENERATOR = torch.Generator().manual_seed(0)
POOL = torch.rand(120, 1, generator=GENERATOR) * 2 - 1
LABELS = (POOL[:, 0] > 0.3).long()
TEST = torch.linspace(-1, 1, 201).unsqueeze(1)


def train(x: Tensor, y: Tensor, previous: Any) -> tuple[Any, Any]:
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=len(x))
    guide = pb.guides.MeanField(model)
    loader = DataLoader(TensorDataset(x, y), 64, shuffle=True)
    pb.fit(model, guide, loader, epochs=60, lr=2e-2, progress=False)
    return model, guide


def evaluate(model: Any, guide: Any) -> dict[str, float]:
    prediction = pb.predict(model, guide, TEST, 10)
    return {"accuracy": float((prediction.predicted == (TEST[:, 0] > 0.3)).double().mean())}


def loop(acquisition: Acquisition | None = None, **options: Any) -> ActiveLearning:
    settings = {"initial": [0, 1, 2, 3], "query_size": 3, "evaluate": evaluate, "num_samples": 10} | options
    return ActiveLearning(train, POOL, settings.pop("oracle", LABELS), acquisition or BALD(), **settings)


@pytest.mark.parametrize("acquisition", [BALD(), Entropy(), BatchBALD(), CoreSet(), Random()])
def test_it_asks_for_new_inputs_and_learns(acquisition: Acquisition) -> None:
    found = loop(acquisition)
    rounds = found.run(3)
    assert [r.num_labels for r in rounds] == [4, 7, 10]
    assert len(found.labeled) == len(set(found.labeled)) == 13
    assert all(r.labels == LABELS[r.asked].tolist() for r in rounds)
    numbers, accuracy = found.curve("accuracy")
    assert numbers == [4, 7, 10] and all(0 <= value <= 1 for value in accuracy)
    assert found.labels_needed("accuracy", max(accuracy)) == numbers[accuracy.index(max(accuracy))]
    assert found.labels_needed("accuracy", 1.1) is None


def test_uncertainty_asks_near_the_boundary() -> None:
    """After 3 rounds the inputs asked for are nearer to it than the pool's are, by a factor of two on average."""
    found = loop(Entropy())
    found.run(3)
    asked = torch.tensor([number for r in found.rounds[1:] for number in r.asked])
    assert float((POOL[asked] - 0.3).abs().mean()) < 0.5 * float((POOL - 0.3).abs().mean())


def test_a_loop_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole = loop(log=tmp_path / "whole.json")
    whole.run(3)
    loop(log=tmp_path / "parts.json").run(1)
    resumed = loop(log=tmp_path / "parts.json")
    assert len(resumed.rounds) == 1
    resumed.run(3)
    assert resumed.rounds == whole.rounds and resumed.labeled == whole.labeled
    assert json.loads((tmp_path / "parts.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())


def test_the_oracle_is_asked_for_what_was_chosen_only() -> None:
    asked: list[int] = []

    def oracle(numbers: Tensor) -> Tensor:
        asked.extend(numbers.tolist())
        return LABELS[numbers]

    found = loop(Random(), oracle=oracle)
    found.run(2)
    assert asked == found.labeled


def test_the_last_round_s_posterior_can_be_started_from() -> None:
    seen: list[Any] = []

    def warm(x: Tensor, y: Tensor, previous: Any) -> tuple[Any, Any]:
        seen.append(previous)
        return train(x, y, None)

    found = ActiveLearning(warm, POOL, LABELS, Random(), initial=[0, 1], query_size=1)
    found.run(2)
    assert seen[0] is None and isinstance(seen[1][1], pb.guides.MeanField)


def test_candidates_and_targets() -> None:
    found = loop(EPIG(), targeted=TEST[::20], candidates=10)
    found.run(1)
    assert len(found.rounds[0].asked) == 3
    before = torch.get_rng_state()
    loop(Random()).run(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    for options, kind, name in (
        ({"initial": []}, ValueError, "initial"),
        ({"initial": [0, 0]}, ValueError, "initial"),
        ({"initial": [120]}, ValueError, "initial"),
        ({"query_size": 0}, ValueError, "query_size"),
        ({"candidates": 2}, ValueError, "candidates"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"seed": -1}, ValueError, "seed"),
        ({"oracle": LABELS[:3]}, ValueError, "oracle"),
        ({"oracle": lambda numbers: LABELS[numbers].float()}, TypeError, "oracle"),
    ):
        with pytest.raises(kind, match=rf"^{name}: "):
            loop(**options)
    with pytest.raises(TypeError, match=r"^acquisition: "):
        loop("bald")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^train: "):
        ActiveLearning(None, POOL, LABELS, BALD(), initial=[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^inputs: "):
        ActiveLearning(train, POOL[:0], LABELS[:0], BALD(), initial=[0])
    with pytest.raises(ValueError, match=r"^num_rounds: 40 rounds of 3 labels and 4 at first make 124"):
        loop().run(40)
    path = tmp_path / "log.json"
    loop(Random(), log=path).run(1)
    for options in ({"query_size": 4}, {"seed": 1}, {"initial": [4]}):
        with pytest.raises(ValueError, match=r"^log: .* another loop"):
            loop(Random(), log=path, **options)
    for text in ("{", "[]", '{"rounds": [{"a": 1}], "initial_labels": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"^log: .* damaged"):
            loop(Random(), log=path)
