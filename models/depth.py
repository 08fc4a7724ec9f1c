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

import pyrobnn as pb
from pyrobnn.layers.unet import UNet

__all__ = ["depth"]


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
    return pb.SupervisedModel(UNet(channels, 2, width=width, levels=levels), likelihood, prior, num_data=num_data)
