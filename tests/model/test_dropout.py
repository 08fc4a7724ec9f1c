"""All dropout of a network is found and switched off, in whatever layer it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrobnn.model.dropout import dropout_off, dropout_rates

X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
BODIES = [
    nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True),
    nn.GRU(8, 8, 2, dropout=0.5),
    nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
    nn.Sequential(nn.Dropout(0.4), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.2), nn.Dropout1d(0.1)),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_two_runs_are_equal_within_the_block_alone(body: nn.Module) -> None:
    body.train()

    def gap() -> float:
        first, second = (h[0] if isinstance(h := body(X), tuple) else h for _ in range(2))
        return float((first - second).detach().abs().max())

    rates = [getattr(module, name) for module, name in dropout_rates(body)]
    assert gap() > 0.01
    with dropout_off(body):
        assert body.training
        assert gap() == 0.0
    assert [getattr(module, name) for module, name in dropout_rates(body)] == rates
    assert gap() > 0.01
