"""Statistics of a whole data set are sums over batches: memory is that of one batch, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import peak_live_bytes
from pyrobnn import SupervisedModel, likelihoods, recalibrate_batch_norm
from pyrobnn.detection import KNN, Detector, Mahalanobis, RelativeMahalanobis, network_outputs
from pyrobnn.guides import MAP, Laplace

ROWS, INPUTS, UNITS, CLASSES = 200, 10, 16, 3
FEATURES_OF_A_BATCH = 4 * ROWS * UNITS


class Batches:
    """Batches that are made as they are asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.count):
            yield torch.randn(ROWS, INPUTS, generator=generator), torch.arange(ROWS) % CLASSES


def model_of(count: int, *, norm: bool = False) -> SupervisedModel:
    torch.manual_seed(0)
    between = (nn.BatchNorm1d(UNITS), nn.Tanh()) if norm else (nn.Tanh(),)
    net = nn.Sequential(nn.Linear(INPUTS, UNITS), *between, nn.Linear(UNITS, CLASSES))
    return SupervisedModel(net, likelihoods.Categorical(), num_data=count * ROWS)


def laplace(structure: str) -> Callable[[int], object]:
    def run(count: int) -> object:
        model = model_of(count)
        return Laplace(model, structure=structure).fit(model, Batches(count), max_bytes=2**20)

    return run


def detector(kind: Callable[[], Detector]) -> Callable[[int], object]:
    def run(count: int) -> object:
        model = model_of(count)
        return kind().fit(network_outputs(model, MAP(model), Batches(count), 1, features=True))

    return run


def batch_norm(count: int) -> object:
    model = model_of(count, norm=True)
    return recalibrate_batch_norm(model, MAP(model), Batches(count))


RUNS: dict[str, Callable[[int], object]] = {
    **{f"Laplace, {name}": laplace(name) for name in ("full", "diagonal", "kronecker", "last_layer")},
    "Mahalanobis": detector(Mahalanobis),
    "relative Mahalanobis": detector(RelativeMahalanobis),
    "recalibrate_batch_norm": batch_norm,
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_memory_does_not_grow_with_the_number_of_batches(run: Callable[[int], object]) -> None:
    """Fifty batches against five; a network's features of one batch would show."""
    run(2)  # what is cached
    few, many = (peak_live_bytes(lambda count=count: run(count)) for count in (5, 50))
    assert many - few < FEATURES_OF_A_BATCH


def test_neighbors_need_the_features_of_all_rows() -> None:
    """The count shows it, and there is a budget."""
    run = detector(KNN)
    run(2)
    few, many = (peak_live_bytes(lambda count=count: run(count)) for count in (5, 50))
    assert many - few > 45 * FEATURES_OF_A_BATCH
    model = model_of(5)
    with pytest.raises(ValueError, match="max_bytes"):
        KNN(max_bytes=4 * FEATURES_OF_A_BATCH).fit(network_outputs(model, MAP(model), Batches(5), 1, features=True))
