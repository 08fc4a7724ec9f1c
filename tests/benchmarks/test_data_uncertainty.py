"""Rows of traffic and pickups: what is trained on, validated and tested, and the row of a table."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.reproduce import data_uncertainty
from benchmarks.reproduce.data_uncertainty import LEVELS, pairs, scores
from benchmarks.reproduce.datasets import MissingDataError, metro_traffic, uber_pickups


def options(**changed: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"quick": False, "rows": 100, "validate": False} | changed)


@pytest.fixture(autouse=True)
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set whose inputs and targets are the numbers of its rows."""
    rows = torch.arange(400.0).unsqueeze(1)
    monkeypatch.setitem(data_uncertainty.SETS, "numbered", lambda: (rows, rows))


def numbers(pair: tuple[Tensor, Tensor]) -> set[int]:
    assert torch.equal(*pair)
    return {int(row) for row in pair[0]}


@pytest.mark.parametrize("split", ["in time", "shuffled"])
def test_validation_rows_are_training_rows_and_no_test_row_is_read(split: str) -> None:
    train, test = (numbers(pair) for pair in pairs("numbered", split, 3, options()))
    fitted, validated = (numbers(pair) for pair in pairs("numbered", split, 3, options(validate=True)))
    assert [len(part) for part in (train, test, fitted, validated)] == [80, 20, 72, 8]
    assert not train & test and not fitted & validated
    assert fitted | validated == train
    if split == "in time":
        assert max(train) < min(test) and max(fitted) < min(validated)
    assert numbers(pairs("numbered", split, 4, options())[0]) != train


def test_the_row_of_a_table() -> None:
    """Ten targets, of which intervals hold 1, 3, 5, 7 and 8: the widest has an error of 10 % and a weight of 0.9."""
    y = torch.arange(10.0).unsqueeze(1)
    low = torch.zeros(5, 10, 1)
    high = torch.tensor([0.0, 2.0, 4.0, 6.0, 7.0]).reshape(5, 1, 1).expand(5, 10, 1)
    row = scores(y + 2.0, low, high, y, torch.full((10,), -1.5))
    assert row["RMSE"] == pytest.approx(2.0)
    assert row["R²"] == pytest.approx(1 - 40 / 82.5)
    assert (row["NLL"], row["PICP"], row["MPIW"]) == pytest.approx((1.5, 80.0, 7.0))
    assert row["CWCE"] == pytest.approx(100 * 0.9 * 0.1 / sum(LEVELS), rel=1e-5)
    assert row["R-CWCE"] == pytest.approx(row["CWCE"] * 40 / 82.5, rel=1e-5)
    assert "NLL" not in scores(y, low, high, y, None)


@pytest.mark.parametrize(("load", "shape"), [(metro_traffic, (48204, 49)), (uber_pickups, (21715, 46))])
def test_sets_have_rows_in_time_and_finite_inputs(load: Any, shape: tuple[int, int]) -> None:
    try:
        x, y = load()
    except MissingDataError as error:
        pytest.skip(str(error))
    assert x.shape == shape and y.shape == (shape[0], 1)
    assert bool(x.isfinite().all()) and bool((y >= 0).all())
    assert torch.equal(x[:, :24].sum(1), torch.ones(shape[0])) and torch.equal(x[:, 24:31].sum(1), torch.ones(shape[0]))
    # 2012-10-02 09:00 was a Tuesday, 2015-01-01 01:00 a Thursday.
    hour, day = int(x[0, :24].argmax()), int(x[0, 24:31].argmax())
    assert (hour, day) == ((9, 1) if load is metro_traffic else (1, 3))
