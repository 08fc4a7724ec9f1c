r"""Matrix scaling: a linear map of the logits,

.. math::  c(p) = \mathrm{softmax}(W z + b), \qquad z = \log p - \overline{\log p},

with the logits z that have mean 0 over classes, since a prediction does not know their shift. It has C² + C
parameters, and so needs many data or a tight prior. Guo et al., "On calibration of modern neural networks", ICML 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.calibration.base import ClassCalibrator, On
from pyrobnn.calibration.linear import centered, fitted_parameters
from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained

__all__ = ["MatrixScaling"]


@explained
class MatrixScaling(ClassCalibrator):
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

    weight: Tensor
    bias: Tensor

    def __init__(self, on: On = "mean", *, prior_scale: float = 1.0) -> None:
        super().__init__("weight", "bias", on=on)
        check_positive("prior_scale", prior_scale)
        self.prior_scale = prior_scale

    def transform(self, log_probs: Tensor) -> Tensor:
        """Mapped and normalized."""
        return self.mapped(log_probs, {"weight": self.weight.to(log_probs), "bias": self.bias.to(log_probs)})

    def fit_to(self, log_probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Matrix and shifts of least negative log posterior."""
        zeros = torch.zeros_like(log_probs[0, 0])
        start = {"weight": torch.diag(zeros + 1.0), "bias": zeros}
        return fitted_parameters(start, self.mapped, log_probs, labels, self.prior_scale)

    @staticmethod
    def mapped(log_probs: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Log probabilities ``[..., C]`` under the map with these parameters."""
        return (centered(log_probs) @ parameters["weight"].mT + parameters["bias"]).log_softmax(-1)
