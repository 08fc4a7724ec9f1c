r"""Depth of each pixel from one image: a small U-Net with a head for the mean and one for the noise.

.. math::  p(y \mid x, w) = \prod_p N\big(y_p;\; \mu_w(x)_p,\; \sigma_w(x)_p^2\big).

Images are the data plate, of size N; an image's pixels are dimensions of one event. The predicted variance of a pixel
is the mean of :math:`\sigma^2` over draws of the weights (aleatoric: at edges, where sensors mix two depths, however
many images there are) plus the variance of μ over them (epistemic: at objects that training did not have). Any guide
takes the model: ``pb.guides.MCDropout(model, p=0.1)`` as in the paper, or an ensemble, ``pb.guides.DeltaMixture``.

Kendall & Gal, *What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?* (2017), with a network of
another size.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.core.arguments import check_positive_int

__all__ = ["DepthUNet", "depth"]


def depth(
    num_data: int,
    *,
    channels: int = 3,
    width: int = 16,
    levels: int = 2,
    floor: float = 1e-3,
    beta: float = 0.0,
    missing: bool = False,
    prior: pb.priors.PriorSpec | None = None,
) -> pb.SupervisedModel:
    """The model of depths ``[B, 1, H, W]`` given images ``[B, channels, H, W]``.

    Args:
        num_data: Number of training images.
        channels: Channels of an image.
        width: Channels at full resolution; they double with each level.
        levels: How often the resolution is halved.
        floor: Smallest standard deviation of a pixel.
        beta: Of the β-NLL, see :class:`~pyrobnn.likelihoods.HeteroscedasticNormal`.
        missing: Whether depths may be NaN (pixels without a measurement).
        prior: Prior of the weights; the default prior if None.

    Raises:
        ValueError: If a size is no positive int, or an option of the likelihood out of range.
    """
    likelihood = pb.likelihoods.HeteroscedasticNormal(floor, dim=1, beta=beta, missing=missing)
    return pb.SupervisedModel(DepthUNet(channels, width=width, levels=levels), likelihood, prior, num_data=num_data)


class DepthUNet(nn.Module):
    """Two convolutions for each level on the way down and up; normalized by image, without parameters.

    Args:
        channels: Channels of an image.
        outputs: Channels of the output: of a depth its mean and raw scale.
        width: Channels at full resolution; they double with each level.
        levels: How often the resolution is halved.

    Raises:
        ValueError: If a size is no positive int.
    """

    def __init__(self, channels: int = 3, outputs: int = 2, *, width: int = 16, levels: int = 2) -> None:
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
        """Means and raw scales ``[B, 2, H, W]`` of images ``[B, channels, H, W]``."""
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
