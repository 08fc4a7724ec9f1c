"""Networks of amortized adversaries on images: a residual generator of perturbations, and an encoder of their noise.

The generator is that of image translation (Johnson, Alahi & Fei-Fei 2016), which adversarial distributional training
uses with three residual blocks at half the size of the image. Normalization is by groups of channels within an image,
so that images of a batch do not see each other and nothing is remembered between batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.explanations import explained

__all__ = ["PerturbationEncoder", "PerturbationGenerator"]


@explained
class PerturbationGenerator(nn.Module):
    """From an image, two gradients and noise to numbers for each pixel.

    Args:
        channels: Channels of an image.
        outputs: Numbers for each element of the image: 2 for :class:`AmortizedDistribution`, 1 for
            :class:`ImplicitDistribution`.
        width: Channels of the first layer; those of the residual blocks are twice as many. (256 in the paper, for
            CIFAR-10.)
        blocks: Number of residual blocks.
        noise_size: Noise variables, which become one more input channel; 0 for none.
        image_size: Height and width of the images, needed with noise.

    Raises:
        ValueError: If a number is out of its range, or noise has no image size.
    """

    def __init__(
        self,
        channels: int,
        outputs: int = 2,
        *,
        width: int = 32,
        blocks: int = 3,
        noise_size: int = 0,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("outputs", outputs), ("width", width), ("blocks", blocks)):
            check_positive_int(name, value)
        check_int("noise_size", noise_size, 0)
        if noise_size and image_size is None:
            raise ValueError("image_size: with noise the generator needs the images' height and width.")
        self.image_size = image_size
        self.spread = nn.Linear(noise_size, image_size[0] * image_size[1]) if noise_size and image_size else None
        self.first = nn.Sequential(_convolution(3 * channels + bool(noise_size), width), _convolution(width, width, 2))
        self.middle = nn.Sequential(_convolution(width, 2 * width), *(_Residual(2 * width) for _ in range(blocks)))
        self.last = nn.Sequential(_convolution(2 * width, width), nn.Conv2d(width, outputs * channels, 3, padding=1))

    def forward(self, shown: Tensor, noise: Tensor | None = None) -> Tensor:
        """Numbers ``[B, outputs * C, H, W]``.

        Args:
            shown: Images and gradients ``[B, 3C, H, W]``.
            noise: ``[B, noise_size]``, if the generator has noise.
        """
        if self.spread is not None:
            assert noise is not None
            shown = torch.cat([shown, self.spread(noise).reshape(-1, 1, *shown.shape[2:])], 1)
        found = self.middle(self.first(shown))
        return self.last(F.interpolate(found, size=shown.shape[2:], mode="nearest"))


@explained
class PerturbationEncoder(nn.Module):
    """From a perturbation to a Gaussian over the noise that it was made from.

    Args:
        channels: Channels of an image.
        noise_size: Noise variables.
        width: Channels of the first layer.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(self, channels: int, noise_size: int = 64, *, width: int = 32) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("noise_size", noise_size), ("width", width)):
            check_positive_int(name, value)
        self.layers = nn.Sequential(
            _convolution(channels, width, 2), _convolution(width, 2 * width, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(32 * width, 2 * noise_size)

    def forward(self, perturbation: Tensor) -> Tensor:
        """Means and log standard deviations ``[B, 2 * noise_size]`` given ``[B, C, H, W]``."""
        return self.head(self.layers(perturbation))


class _Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        return x + self.layers(x)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(min(4, outputs), outputs), nn.ReLU()
    )
