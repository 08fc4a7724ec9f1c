"""Figures and images as PNGs inside a page."""

from __future__ import annotations

import base64
import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Png", "png_of_figure", "png_of_image"]


@dataclass(frozen=True)
class Png:
    """A PNG and the size it is shown at.

    Attributes:
        uri: The image itself, as a ``data:`` address.
        width: In pixels of the page.
        height: In pixels of the page.
    """

    uri: str
    width: int
    height: int


def png_of_figure(fig: Figure) -> Png:
    """A figure at twice the resolution that it is shown at; it is closed.

    Raises:
        TypeError: If it is not a figure.
    """
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    if not isinstance(fig, Figure):
        raise TypeError(f"fig: expected a matplotlib Figure, got {type(fig).__name__}. Of axes pass ax.figure.")
    buffer = io.BytesIO()
    # No version stamp: the same figure gives the same bytes.
    fig.savefig(buffer, format="png", dpi=2 * fig.dpi, bbox_inches="tight", metadata={"Software": None})
    plt.close(fig)
    return _png(buffer.getvalue(), 2)


def png_of_image(pixels: NDArray[np.float64]) -> Png:
    """Pixels from 0 to 1, ``[H, W]`` or ``[H, W, 3]``, one for one."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", cmap="gray", vmin=0.0, vmax=1.0, metadata={"Software": None})  # type: ignore[dict-item]
    return _png(buffer.getvalue(), 1)


def _png(data: bytes, scale: int) -> Png:
    width, height = (size // scale for size in struct.unpack(">II", data[16:24]))  # from the PNG header
    return Png(f"data:image/png;base64,{base64.b64encode(data).decode()}", width, height)
