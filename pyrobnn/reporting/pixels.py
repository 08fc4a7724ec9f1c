"""Images as pixels that can be drawn."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrobnn.metrics._checks import check_float

__all__ = ["pixels"]


def pixels(images: Tensor) -> NDArray[np.float64]:
    """Images from 0 to 1, channels last; those that leave the range are scaled together.

    Raises:
        TypeError: If the images are neither floating point nor ``uint8``.
        ValueError: If the shape is another, or a value is not finite.
    """
    channels = images.shape[1] if images.ndim == 4 else 1
    if images.ndim not in (3, 4) or channels not in (1, 3):
        raise ValueError(f"images: expected [N, H, W] or [N, 1 or 3, H, W], got {list(images.shape)}.")
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    found = check_float(scaled, "images", finite=True).detach().cpu().double().numpy()
    low, high = found.min(), found.max()
    if low < 0 or high > 1:
        found = (found - low) / (high - low if high > low else 1)
    if found.ndim == 4:
        found = found.transpose(0, 2, 3, 1)
        return found[..., 0] if channels == 1 else found
    return found
