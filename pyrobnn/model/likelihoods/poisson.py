"""Counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.distributions import with_cdf
from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.constant import mean_target
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.supports import check_counts

__all__ = ["Poisson"]


@explained
class Poisson(Likelihood):
    """Counts with rate exp(output).

    Args:
        missing: Whether counts may be NaN (not observed), as in :class:`Likelihood`.
    """

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The ``log_rate``."""
        return {"log_rate": outputs}

    def distribution(self, parameters: Mapping[str, Tensor]) -> with_cdf.Poisson:
        """Poisson with the rate whose logarithm is ``log_rate``."""
        return with_cdf.Poisson(parameters["log_rate"])

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """The rate."""
        if type(self) is not Poisson:  # a subclass may have another density
            return super().fisher_information(outputs)
        return FisherInformation.of_independent(outputs.exp())

    @property
    def is_concave(self) -> bool:
        """It is linear minus an exponential."""
        return type(self) is Poisson

    def constant_outputs(self, outputs: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor | None:
        """The log of the mean count."""
        if type(self) is not Poisson:  # a subclass may have another density
            return super().constant_outputs(outputs, y, weight)
        return mean_target(self, y, weight).clamp_min(1e-6).log().to(outputs.dtype)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """That of the outputs."""
        return outputs.shape

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Non-negative whole numbers, as floats."""
        self.check_shape(outputs, y)
        check_counts(self, y)
