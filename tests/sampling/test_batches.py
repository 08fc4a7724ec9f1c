"""The stream of batches: places that are found again, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn.sampling.batches import Batches, all_data
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
        found = all_data(data, None)
        assert all(torch.equal(a, b) for a, b in zip(found, rows(), strict=True))
    with pytest.raises(TypeError, match="inputs are no tensors cannot be joined"):
        all_data([((rows()[0], rows()[0]), rows()[1])], None)
    with pytest.raises(ValueError, match="yielded no batch"):
        all_data([], None)


def test_rows_of_a_loader_without_a_data_set_are_counted() -> None:
    with pytest.raises(ValueError, match="yielded 16 rows in one pass"):
        quick(classifier(), list(loader())[:2])
