"""Standard normals for training draws, in groups that share one block of random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["AntitheticNoise"]

_GROUP = 8  # draws that share one block of random numbers


class AntitheticNoise:
    """Noise of one draw after another: a block of random numbers under the signs of Hadamard rows, and mirrored.

    Each draw is standard normal. In a group of eight the noise of pairs sums to zero, and so do products of the noises
    of different quarters over the group.

    Args:
        like: A tensor of the noise's shape ``[n]``, dtype and device.

    Attributes:
        values: The noise of the present draw.
        turn: Position of the coming draw in its group.
    """

    def __init__(self, like: Tensor) -> None:
        self.values, self.turn = torch.empty_like(like), 0
        self._quarters = self.values.tensor_split(4)

    def refresh(self, antithetic: bool, noise: Tensor | None = None) -> None:
        """The noise of the next draw: given, new, or the last one with other signs at a tenth of the cost."""
        if noise is not None:
            self.values.copy_(noise)
            self.turn = 0
            return
        if self.turn == 0:
            self.values.normal_()
        elif self.turn % 2:
            self.values.neg_()
        else:
            for quarter in (0, 2) if self.turn == 4 else (0, 1):
                self._quarters[quarter].neg_()
        self.turn = (self.turn + 1) % _GROUP if antithetic else 0
