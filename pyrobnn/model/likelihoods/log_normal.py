"""Positive targets whose logarithm is Gaussian."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.distributions import log_normal
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.paired import PairedOutputs
from pyrobnn.model.likelihoods.supports import check_positive_targets

__all__ = ["LogNormal"]


@explained
class LogNormal(PairedOutputs):
    r"""Positive targets, :math:`\log y \sim N(\mu(x), \sigma(x)^2)`: outputs ``[B, 2 D]`` are μ, then raw scales.

    Predictions are of y, of mean :math:`e^{\mu + \sigma^2 / 2}`.

    Args:
        floor: Smallest σ, which keeps the likelihood bounded.
        dim: Dimension of the outputs that holds μ, then raw scales; 1 for images ``[B, 2 C, H, W]``.
        missing: Whether targets may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`.

    Raises:
        ValueError: If ``floor`` is negative, or ``dim`` is no int or the dimension of the data.
    """

    placeholder = 1.0
    first = "means of log y"

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``log_loc`` and ``log_scale``, of the logarithm."""
        loc, raw = self.halves(outputs)
        return {"log_loc": loc, "log_scale": self.positive(raw)}

    def distribution(self, parameters: Mapping[str, Tensor]) -> log_normal.LogNormal:
        """Log-normal."""
        return log_normal.LogNormal(parameters["log_loc"], parameters["log_scale"])

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """Of μ, ``1 / σ²``; of the raw scale, ``2 σ'² / σ²``."""
        if type(self) is not LogNormal:  # a subclass may have another density
            return super().fisher_information(outputs)
        _, raw = self.halves(outputs)
        inverse = self.positive(raw).square().reciprocal()
        return self.joined(inverse, 2.0 * raw.sigmoid().square() * inverse)

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Positive, finite floating-point numbers."""
        self.check_shape(outputs, y)
        check_positive_targets(self, y)
