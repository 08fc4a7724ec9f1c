r"""Vector scaling: a factor and a shift for each class,

.. math::  c(p) = \mathrm{softmax}(w \odot z + b), \qquad z = \log p - \overline{\log p}.

A prediction holds log probabilities, which are the network's logits up to a shift of each input; z has mean 0 over
classes. Guo et al., "On calibration of modern neural networks", ICML 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.calibration.linear import LinearCalibrator, centered
from pyrobnn.core.explanations import explained

__all__ = ["VectorScaling"]


@explained
class VectorScaling(LinearCalibrator):
    """A factor and a shift for the logit of each class; classes must all occur in the calibration data.

    Args:
        on: ``"mean"`` scales the averaged probabilities, ``"draws"`` those of each draw before they are averaged.
        prior_scale: Standard deviation of a normal prior of factors around 1 and shifts around 0; larger is freer.

    Attributes:
        weight: The factors ``[C]``.
        bias: The shifts ``[C]``.

    Raises:
        ValueError: If ``on`` is neither, or ``prior_scale`` is not positive.
    """

    @staticmethod
    def identity(bias: Tensor) -> dict[str, Tensor]:
        """Factors of 1, and no shifts."""
        return {"weight": torch.ones_like(bias), "bias": bias}

    @staticmethod
    def mapped(log_probs: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Log probabilities ``[..., C]``, scaled, shifted and normalized."""
        return (centered(log_probs) * parameters["weight"] + parameters["bias"]).log_softmax(-1)
