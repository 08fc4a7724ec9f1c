"""Unlabeled batches: each row once in a pass, their indices, trees and data sets, resuming, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from pyrobnn.objectives import UnlabeledLoader

X = torch.arange(7.0).reshape(7, 1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_row_is_once_in_a_pass(shuffle: bool) -> None:
    torch.manual_seed(0)
    loader = UnlabeledLoader(X, 3, shuffle=shuffle)
    assert len(loader) == 3
    orders = []
    for _ in range(2):
        batches = [loader.next_batch() for _ in range(3)]
        assert all(torch.equal(x[:, 0], index.float()) for x, index in batches)
        assert [len(x) for x, _ in batches] == [3, 3, 1]
        orders.append(torch.cat([index for _, index in batches]).tolist())
        assert sorted(orders[-1]) == list(range(7))
    assert (orders[0] != orders[1]) == shuffle
    assert sorted(torch.cat(list(loader))[:, 0].tolist()) == list(range(7))


def test_trees_and_data_sets() -> None:
    x, index = UnlabeledLoader({"a": X, "b": (X, 2.0)}, 4, shuffle=False).next_batch()
    assert torch.equal(x["a"], X[:4]) and torch.equal(x["b"][0], X[:4]) and x["b"][1] == 2.0 and len(index) == 4
    for data in (TensorDataset(X, torch.zeros(7)), TensorDataset(X)):
        assert torch.equal(UnlabeledLoader(data, 4, shuffle=False).next_batch()[0], X[:4])


def test_a_pass_continues_where_it_was() -> None:
    torch.manual_seed(0)
    loader = UnlabeledLoader(X, 3)
    loader.next_batch()
    state, random = loader.state(), torch.get_rng_state()
    expected = [loader.next_batch()[1] for _ in range(4)]
    other = UnlabeledLoader(X, 3)
    other.load_state(state)
    torch.set_rng_state(random)
    assert all(torch.equal(other.next_batch()[1], index) for index in expected)
    with pytest.raises(ValueError, match=r"^unlabeled: the run to resume had 7 unlabeled rows, but now there are 6"):
        UnlabeledLoader(X[:6], 3).load_state(state)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (3, TypeError, r"^inputs: expected a tensor with a row for each input, got int"),
        (torch.tensor(1.0), TypeError, r"^inputs: expected a tensor with a row"),
        (np.ones((3, 2)), TypeError, r"^inputs: the unlabeled inputs"),
        (X[:0], ValueError, r"^inputs: there are no unlabeled rows"),
        ((X, X[:3]), ValueError, r"^inputs: its tensors have different numbers of rows, \[3, 7\]"),
    ],
)
def test_wrong_inputs(wrong: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        UnlabeledLoader(wrong)


def test_wrong_options() -> None:
    for wrong in (0, 2.5, True, "a", None):
        with pytest.raises(ValueError, match=r"^batch_size: expected a positive int"):
            UnlabeledLoader(X, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^shuffle: "):
        UnlabeledLoader(X, shuffle=1)  # type: ignore[arg-type]
