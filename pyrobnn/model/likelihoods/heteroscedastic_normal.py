"""Gaussian noise that depends on the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.model.likelihoods.base import Likelihood

__all__ = ["HeteroscedasticNormal"]


class HeteroscedasticNormal(Likelihood):
    r"""Gaussian noise that depends on the input: outputs ``[B, 2 D]`` are means, then raw scales.

    :math:`\sigma(x) = \mathrm{softplus}(r(x)) + \mathrm{floor}` (Nix & Weigend 1994; Kendall & Gal 2017).

    Args:
        floor: Smallest standard deviation, which keeps the likelihood bounded.
        missing: Whether targets may be NaN (not observed), as in :class:`Likelihood`.

    Raises:
        ValueError: If ``floor`` is negative.
    """

    def __init__(self, floor: float = 1e-3, *, missing: bool = False) -> None:
        super().__init__(missing=missing)
        if not floor >= 0:
            raise ValueError(f"floor: expected a standard deviation of at least 0, got {floor}.")
        self.floor = float(floor)

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The network's means as ``loc``, and its ``scale``."""
        mean, raw = self._halves(outputs)
        return {"loc": mean, "scale": F.softplus(raw) + self.floor}

    def _halves(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        if outputs.dim() < 2 or outputs.shape[-1] % 2:
            raise ValueError(
                f"net: HeteroscedasticNormal expects outputs [B, 2 D], means then raw scales, got shape "
                f"{tuple(outputs.shape)}; give the last layer two outputs per target."
            )
        mean, raw = outputs.chunk(2, -1)
        return mean, raw

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.Normal:
        """Normal with ``loc`` and ``scale``."""
        return dist.Normal(parameters["loc"], parameters["scale"])

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """Half of the outputs."""
        return self._halves(outputs)[0].shape

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"floor": self.floor, **super().config()}
