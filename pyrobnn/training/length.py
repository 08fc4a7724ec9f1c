"""How long a run is where that is not stated: about as many gradient steps, however many batches the data make."""

from __future__ import annotations

import math
from typing import Any

from pyrobnn.core.batches import num_batches

__all__ = ["default_epochs", "default_patience", "epochs_of"]

STEPS = 2_000
EPOCHS = 20
PATIENCE = 10


def default_epochs(loader: Any) -> int:
    """The epochs of :func:`pyrobnn.fit` where they are not stated: 2,000 gradient steps, and at least 20 epochs.

    Args:
        loader: The training data; 20 epochs if it has no length.
    """
    return epochs_of(num_batches(loader))


def epochs_of(batches: int | None) -> int:
    """The same, of the number of gradient steps in a pass; None if it is not known."""
    return EPOCHS if not batches else max(EPOCHS, math.ceil(STEPS / batches))


def default_patience(epochs: int) -> int:
    """The patience of early stopping where it is not stated: a tenth of all epochs, and at least 10."""
    return max(PATIENCE, epochs // 10)
