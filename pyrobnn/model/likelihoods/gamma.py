"""Positive targets with noise in proportion to their mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.distributions import gamma
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.paired import PairedOutputs
from pyrobnn.model.likelihoods.supports import check_positive_targets

__all__ = ["Gamma"]


@explained
class Gamma(PairedOutputs):
    r"""Positive targets, gamma-distributed: outputs ``[B, 2 D]`` are logarithms of means, then raw concentrations.

    Of mean :math:`m = e^{o}` and concentration :math:`\alpha`, the variance is :math:`m^2 / \alpha`.

    Args:
        floor: Smallest concentration.
        dim: Dimension of the outputs that holds logarithms of means, then raw concentrations; 1 for images.
        missing: Whether targets may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`.

    Raises:
        ValueError: If ``floor`` is negative, or ``dim`` is no int or the dimension of the data.
    """

    placeholder = 1.0
    first, second, floored = "logarithms of means", "raw concentrations", "concentration"

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``concentration`` and ``log_mean``."""
        log_mean, raw = self.halves(outputs)
        return {"concentration": self.positive(raw), "log_mean": log_mean}

    def distribution(self, parameters: Mapping[str, Tensor]) -> gamma.Gamma:
        """Gamma with ``concentration`` and the mean whose logarithm is ``log_mean``."""
        return gamma.Gamma(parameters["concentration"], parameters["log_mean"])

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """Of the mean's logarithm, α; of the raw concentration, ``(ψ'(α) - 1 / α) α'²``."""
        if type(self) is not Gamma:  # a subclass may have another density
            return super().fisher_information(outputs)
        _, raw = self.halves(outputs)
        alpha = self.positive(raw)
        return self.joined(alpha, (torch.polygamma(1, alpha) - alpha.reciprocal()) * raw.sigmoid().square())

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Positive, finite floating-point numbers."""
        self.check_shape(outputs, y)
        check_positive_targets(self, y)
