r"""Matrix scaling: a linear map of the logits,

.. math::  c(p) = \mathrm{softmax}(W z + b), \qquad z = \log p - \overline{\log p},

with the logits z that have mean 0 over classes, since a prediction does not know their shift. It has C² + C
parameters, and so needs many data or a tight prior. Guo et al., "On calibration of modern neural networks", ICML 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.calibration.linear import LinearCalibrator, centered
from pyrobnn.core.explanations import explained

__all__ = ["MatrixScaling"]


@explained
class MatrixScaling(LinearCalibrator):
    """A linear map of the logits; classes must all occur in the calibration data.

    Args:
        on: ``"mean"`` maps the averaged probabilities, ``"draws"`` those of each draw before they are averaged.
        prior_scale: Standard deviation of a normal prior of the map around the identity; larger is freer.

    Attributes:
        weight: The matrix ``[C, C]``, row by row for the calibrated classes.
        bias: The shifts ``[C]``.

    Raises:
        ValueError: If ``on`` is neither, or ``prior_scale`` is not positive.
    """

    @staticmethod
    def identity(bias: Tensor) -> dict[str, Tensor]:
        """The identity matrix, and no shifts."""
        return {"weight": torch.diag(bias + 1.0), "bias": bias}

    @staticmethod
    def mapped(log_probs: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Log probabilities ``[..., C]`` under the map with these parameters."""
        return (centered(log_probs) @ parameters["weight"].mT + parameters["bias"]).log_softmax(-1)
