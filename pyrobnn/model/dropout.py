"""Dropout inside networks: where it is, and switching it off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["DROPOUTS", "dropout_off", "dropout_rates"]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def dropout_rates(net: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """``(module, attribute)`` of all dropout probabilities: of dropout modules, recurrent layers and attention."""
    for module in net.modules():
        if isinstance(module, DROPOUTS):
            yield module, "p"
        elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            yield module, "dropout"


@contextlib.contextmanager
def dropout_off(net: nn.Module) -> Iterator[None]:
    """Sets all dropout probabilities to zero for the block.

    Modes stay as they are: cuDNN differentiates recurrent layers in training mode only.
    """
    rates = [(module, name, getattr(module, name)) for module, name in dropout_rates(net)]
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)
