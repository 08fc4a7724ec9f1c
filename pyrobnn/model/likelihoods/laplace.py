"""Noise whose logarithm is linear in the error."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.paired import PairedOutputs

__all__ = ["Laplace"]


@explained
class Laplace(PairedOutputs):
    r"""Laplace noise, of which the absolute error is the loss: outputs ``[B, 2 D]`` are locations, then raw scales.

    :math:`p(y \mid x) = e^{-|y - \mu(x)| / b(x)} / (2 b(x))`. It is no relation of :class:`pyrobnn.guides.Laplace`.

    Args:
        floor: Smallest scale b, which keeps the likelihood bounded.
        dim: Dimension of the outputs that holds locations, then raw scales; 1 for images ``[B, 2 C, H, W]``.
        missing: Whether targets may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`.

    Raises:
        ValueError: If ``floor`` is negative, or ``dim`` is no int or the dimension of the data.
    """

    first = "locations"
    floored = "scale"

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``loc`` and ``scale``."""
        loc, raw = self.halves(outputs)
        return {"loc": loc, "scale": self.positive(raw)}

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.Laplace:
        """Laplace with ``loc`` and ``scale``."""
        return dist.Laplace(parameters["loc"], parameters["scale"])

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """Of the location, ``1 / b²``; of the raw scale, ``b'² / b²``."""
        if type(self) is not Laplace:  # a subclass may have another density
            return super().fisher_information(outputs)
        _, raw = self.halves(outputs)
        inverse = self.positive(raw).square().reciprocal()
        return self.joined(inverse, raw.sigmoid().square() * inverse)
