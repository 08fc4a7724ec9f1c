r"""Vector scaling: a factor and a shift for each class,

.. math::  c(p) = \mathrm{softmax}(w \odot z + b), \qquad z = \log p - \overline{\log p}.

A prediction holds log probabilities, which are the network's logits up to a shift of each input; z has mean 0 over
classes. Guo et al., "On calibration of modern neural networks", ICML 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.calibration.base import ClassCalibrator, On
from pyrobnn.calibration.linear import centered, fitted_parameters
from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained

__all__ = ["VectorScaling"]


@explained
class VectorScaling(ClassCalibrator):
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

    weight: Tensor
    bias: Tensor

    def __init__(self, on: On = "mean", *, prior_scale: float = 1.0) -> None:
        super().__init__("weight", "bias", on=on)
        check_positive("prior_scale", prior_scale)
        self.prior_scale = prior_scale

    def transform(self, log_probs: Tensor) -> Tensor:
        """Scaled, shifted and normalized."""
        return _scaled(log_probs, {"weight": self.weight.to(log_probs), "bias": self.bias.to(log_probs)})

    def fit_to(self, log_probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Factors and shifts of least negative log posterior."""
        ones = torch.ones_like(log_probs[0, 0])
        start = {"weight": ones, "bias": torch.zeros_like(ones)}
        return fitted_parameters(start, _scaled, log_probs, labels, self.prior_scale)


def _scaled(log_probs: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    return (centered(log_probs) * parameters["weight"] + parameters["bias"]).log_softmax(-1)
