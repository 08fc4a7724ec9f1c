"""Rows that are held out, and batches of the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyrobnn.sklearn.network import default_widths
from pyrobnn.sklearn.rows import ShuffledBatches, default_batch_size, held_out_rows


@pytest.mark.parametrize(("rows", "fraction", "held"), [(49, 0.1, 0), (50, 0.1, 10), (100, 0.1, 10), (1000, 0.2, 200)])
def test_how_many_rows_are_held_out(rows: int, fraction: float, held: int) -> None:
    kept, out = held_out_rows(rows, fraction, np.random.RandomState(0))
    assert len(out) == held
    assert sorted([*kept, *out]) == list(range(rows))


def test_a_share_of_each_class_is_held_out_and_none_disappears() -> None:
    labels = np.repeat([0, 1, 2], [80, 20, 1])
    kept, out = held_out_rows(101, 0.1, np.random.RandomState(0), labels)
    assert np.bincount(labels[out]).tolist() == [8, 2]
    assert set(labels[kept]) == {0, 1, 2}


def test_batches_are_full_and_of_other_rows_in_each_pass() -> None:
    x = torch.arange(10.0).unsqueeze(1)
    batches = ShuffledBatches(x, x, 4)
    torch.manual_seed(0)
    first, second = ([part for part, _ in batches] for _ in range(2))
    assert len(batches) == 2
    assert [len(part) for part in first] == [4, 4]
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert len(torch.cat(first).unique()) == 8


def test_few_rows_are_one_batch() -> None:
    x = torch.arange(3.0).unsqueeze(1)
    assert [len(part) for part, _ in ShuffledBatches(x, x, 64)] == [3]


def test_a_pass_in_order_has_each_row_once() -> None:
    x = torch.arange(2500.0).unsqueeze(1)
    assert torch.equal(torch.cat([part for part, _ in ShuffledBatches(x, x, 64).in_order()]), x)


def test_sizes_grow_with_the_data() -> None:
    assert [default_widths(rows)[0] for rows in (100, 5_000, 50_000)] == [50, 100, 200]
    assert [default_batch_size(rows) for rows in (100, 10_000)] == [64, 256]
