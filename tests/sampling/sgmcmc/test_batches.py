"""The stream of batches: places that are found again, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn.core.batches import Batch
from pyrobnn.sampling.sgmcmc.batches import Batches, all_data
from tests.sampling.models import classifier, loader, quick, rows


def test_a_loaders_own_generator_is_resumed(tmp_path: Path) -> None:
    def own() -> DataLoader:
        return loader(generator=torch.Generator().manual_seed(3))

    expected = quick(classifier(), own(), num_samples=8)
    quick(classifier(), own(), num_samples=4, directory=tmp_path)
    resumed = quick(classifier(), own(), num_samples=8, directory=tmp_path, resume=True)
    assert torch.equal(resumed.blocks[0], expected.blocks[0])


def test_targets_out_of_range_are_refused() -> None:
    x, y = rows()
    with pytest.raises(ValueError, match="integer labels from 0 to 2"):
        quick(classifier(), DataLoader(TensorDataset(x, y + 1), batch_size=8))
    with pytest.raises(ValueError, match="integer labels from 0 to 2"):
        quick(classifier(), (x, y + 1))


def drawn(batches: Batches, count: int) -> list[Tensor]:
    """The inputs of the coming batches."""
    return [batches.next()[0] for _ in range(count)]


@pytest.mark.parametrize("make", [loader, lambda: list(loader()), rows])
@pytest.mark.parametrize("taken", [0, 2, 3, 4])
def test_a_place_in_the_stream_is_found_again(make: Callable[[], Any], taken: int) -> None:
    """In the middle, at the end and at the beginning of a pass; the random state goes back beside it, as in a run."""
    data = make()
    batches = Batches(classifier(), data)
    drawn(batches, taken)
    place, random = batches.read(), torch.get_rng_state()
    expected = drawn(batches, 5)
    torch.manual_seed(77)
    other = Batches(classifier(), data)
    other.write(place)
    torch.set_rng_state(random)
    for found, value in zip(drawn(other, 5), expected, strict=True):
        assert torch.equal(found, value)


def test_passes_are_counted_and_each_row_is_seen_once() -> None:
    batches = Batches(classifier(), loader())
    seen = torch.cat(drawn(batches, 3))
    assert batches.is_first
    assert torch.equal(seen.sort(0).values, rows()[0].sort(0).values)
    batches.next()
    assert not batches.is_first
    assert batches.epoch == 1


def test_peeking_does_not_move_on() -> None:
    batches = Batches(classifier(), loader(shuffle=False))
    assert torch.equal(batches.peek()[0], rows()[0][:8])
    assert torch.equal(torch.cat(drawn(batches, 2)), rows()[0][:16])


def test_all_data_joins_the_batches() -> None:
    for data in (rows(), loader(shuffle=False)):
        found = all_data(classifier(), data)
        assert all(torch.equal(a, b) for a, b in zip(found, rows(), strict=True))
    with pytest.raises(ValueError, match="yielded no batch"):
        all_data(classifier(), [])


def test_all_data_joins_trees_of_inputs_and_weights() -> None:
    x, y = rows()
    weight = torch.rand(len(y))
    halves = [({"input": x[part]}, y[part], weight[part]) for part in (slice(10), slice(10, None))]
    joined, targets, weights = all_data(classifier(), halves)
    assert list(joined) == ["input"]
    assert torch.equal(joined["input"], x)
    assert torch.equal(targets, y)
    assert torch.equal(weights, weight)


def test_all_data_of_another_size_are_refused() -> None:
    """They would count N/B times each, and the posterior would be too narrow or too wide."""
    x, y = rows()
    for data in ((x[:12], y[:12]), [(x[:12], y[:12])]):
        with pytest.raises(ValueError, match=r"^num_data: .* 24 data, .* 12 rows"):
            all_data(classifier(), data)
    with pytest.raises(ValueError, match=r"^num_data: .* data has 12 rows, each of which would count 2 times"):
        quick(classifier(), (x[:12], y[:12]))


def test_a_reader_says_how_batches_are_read() -> None:
    x, y = rows()
    expected = quick(classifier(), [(x[:12], y[:12]), (x[12:], y[12:])])
    found = quick(classifier(), [(y[:12], x[:12]), (y[12:], x[12:])], batch=lambda raw: (raw[1], raw[0]))
    assert torch.equal(found.blocks[0], expected.blocks[0])


def test_keyword_arguments_of_a_reader_are_refused() -> None:
    def reader(raw: Any) -> Batch:
        return Batch((raw[0],), {"y": raw[1]}, raw[0], raw[1], len(raw[1]))

    with pytest.raises(TypeError, match=r"^batch: sampling passes positional arguments only"):
        quick(classifier(), [rows()], batch=reader)


def test_rows_of_a_loader_without_a_data_set_are_counted() -> None:
    with pytest.raises(ValueError, match="the data's batches have 16 rows"):
        quick(classifier(), list(loader())[:2])
