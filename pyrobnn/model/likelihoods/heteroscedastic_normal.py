"""Gaussian noise that depends on the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.information import FisherInformation

__all__ = ["HeteroscedasticNormal"]


@explained
class HeteroscedasticNormal(Likelihood):
    r"""Gaussian noise that depends on the input: outputs ``[B, 2 D]`` are means, then raw scales.

    :math:`\sigma(x) = \mathrm{softplus}(r(x)) + \mathrm{floor}` (Nix & Weigend 1994; Kendall & Gal 2017).

    Args:
        floor: Smallest standard deviation, which keeps the likelihood bounded.
        dim: Dimension of the outputs that holds means, then raw scales. The default suits ``[B, 2 D]``; use 1 for
            images ``[B, 2 C, H, W]`` with targets ``[B, C, H, W]``.
        missing: Whether targets may be NaN (not observed), as in :class:`Likelihood`.

    Raises:
        ValueError: If ``floor`` is negative, or ``dim`` is no int or the dimension of the data.
    """

    def __init__(self, floor: float = 1e-3, *, dim: int = -1, missing: bool = False) -> None:
        super().__init__(missing=missing)
        check_non_negative("floor", floor, "standard deviation")
        if isinstance(dim, bool) or not isinstance(dim, int) or dim == 0:
            raise ValueError(f"dim: expected an int, a dimension of the outputs other than 0, got {dim!r}.")
        self.floor, self.dim = float(floor), dim

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The network's means as ``loc``, and its ``scale``."""
        mean, raw = self._halves(outputs)
        return {"loc": mean, "scale": F.softplus(raw) + self.floor}

    def _halves(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        dims = outputs.dim()
        if dims < 2 or not 1 - dims <= self.dim < dims or outputs.shape[self.dim] % 2:
            raise ValueError(
                f"net: HeteroscedasticNormal expects outputs [B, 2 D], means then raw scales along dim={self.dim}, got "
                f"shape {tuple(outputs.shape)}; give the last layer two outputs per target, or pass dim= the dimension "
                "that holds them (1 for images [B, 2 C, H, W])."
            )
        mean, raw = outputs.chunk(2, self.dim)
        return mean, raw

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.Normal:
        """Normal with ``loc`` and ``scale``."""
        return dist.Normal(parameters["loc"], parameters["scale"])

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """Of the mean, ``1 / σ²``; of the raw scale, ``2 σ'² / σ²``."""
        if type(self) is not HeteroscedasticNormal:  # a subclass may have another density
            return super().fisher_information(outputs)
        _, raw = self._halves(outputs)
        variance = (F.softplus(raw) + self.floor).square()
        information = torch.cat([1.0 / variance, 2.0 * raw.sigmoid().square() / variance], self.dim)
        return FisherInformation.of_independent(information)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """Half of the outputs."""
        return self._halves(outputs)[0].shape

    def check_shape(self, outputs: Tensor, y: Tensor) -> None:
        """Refuses targets of another shape; says which ``dim`` would make them fit.

        Raises:
            TypeError: If ``y`` is no tensor.
            ValueError: If its shape is not :meth:`target_shape`.
        """
        try:
            super().check_shape(outputs, y)
        except ValueError as error:
            halved = [
                dim
                for dim in range(1, outputs.dim())
                if outputs.shape[dim] % 2 == 0 and outputs.chunk(2, dim)[0].shape == getattr(y, "shape", None)
            ]
            if not halved:
                raise
            raise ValueError(
                f"dim: y of shape {tuple(y.shape)} fits outputs of shape {tuple(outputs.shape)} if means and raw "
                f"scales are along dimension {halved[0]}; pass HeteroscedasticNormal(dim={halved[0]})."
            ) from error

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"floor": self.floor, "dim": self.dim, **super().config()}
