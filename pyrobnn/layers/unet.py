"""A small U-Net: from images to as many numbers for each pixel as are wanted.

Images are normalized by themselves, without parameters, so that those of a batch do not see each other and nothing is
remembered between batches. Ronneberger, Fischer & Brox, *U-Net* (2015), with a network of another size.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained

__all__ = ["UNet"]


@explained
class UNet(nn.Module):
    """Two convolutions for each level on the way down and up, and skip connections between them.

    Args:
        channels: Channels of an image.
        outputs: Channels of the output.
        width: Channels at full resolution; they double with each level.
        levels: How often the resolution is halved.

    Raises:
        ValueError: If a size is no positive int.
    """

    def __init__(self, channels: int, outputs: int, *, width: int = 16, levels: int = 2) -> None:
        super().__init__()
        sizes = {"channels": channels, "outputs": outputs, "width": width, "levels": levels}
        for name, size in sizes.items():
            check_positive_int(name, size)
        widths = [width * 2**level for level in range(levels + 1)]
        steps = list(itertools.pairwise(widths))
        self.stem = _block(channels, width)
        self.down = nn.ModuleList(_block(above, below) for above, below in steps)
        self.up = nn.ModuleList(_block(below + above, above) for above, below in reversed(steps))
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, outputs, H, W]`` of images ``[B, channels, H, W]`` of any size."""
        passed = [self.stem(x)]
        for block in self.down:
            passed.append(block(F.max_pool2d(passed[-1], 2, ceil_mode=True)))
        x = passed.pop()
        for block in self.up:
            skip = passed.pop()
            x = block(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        return self.head(x)


def _block(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1),
            nn.GroupNorm(1, outputs, affine=False),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
