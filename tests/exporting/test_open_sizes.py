"""Layers that are written by other operators compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrobnn.exporting.open_sizes import OpenSizes


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 3),
        nn.Linear(4, 3, bias=False),
        nn.LayerNorm(4),
        nn.LayerNorm((5, 4), elementwise_affine=False),
        nn.BatchNorm1d(5),
        nn.BatchNorm1d(5, affine=False),
        nn.BatchNorm1d(5, track_running_stats=False),
    ],
    ids=str,
)
def test_layers_compute_the_same(layer: nn.Module) -> None:
    layer.train()
    layer(torch.randn(50, 5, 4) + 2.0)  # running statistics other than 0 and 1
    layer.eval()
    x = torch.randn(2, 5, 4)
    expected = layer(x)
    with OpenSizes():
        torch.testing.assert_close(layer(x), expected)


def test_an_embedding_selects_rows() -> None:
    layer, index = nn.Embedding(7, 3, padding_idx=0), torch.tensor([[0, 6, 2], [1, 1, 5]])
    with OpenSizes():
        torch.testing.assert_close(layer(index), layer.weight[index])
