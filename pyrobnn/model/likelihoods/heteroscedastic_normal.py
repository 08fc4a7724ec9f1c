"""Gaussian noise that depends on the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.arguments import check_int, check_number
from pyrobnn.core.explanations import explained
from pyrobnn.distributions.beta_normal import BetaNormal
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.paired import PairedOutputs
from pyrobnn.model.likelihoods.reductions import widened

__all__ = ["HeteroscedasticNormal"]


@explained
class HeteroscedasticNormal(PairedOutputs):
    r"""Gaussian noise that depends on the input: outputs ``[B, 2 D]`` are means, then raw scales.

    :math:`\sigma(x) = \mathrm{softplus}(r(x)) + \mathrm{floor}` (Nix & Weigend 1994; Kendall & Gal 2017).

    Trained from the start, a large σ where the mean is still wrong takes away the gradient that would correct the mean.
    Two options act in training mode only; samplers, curvature and predictions see the plain density.

    Args:
        floor: Smallest standard deviation, which keeps the likelihood bounded.
        dim: Dimension of the outputs that holds means, then raw scales. The default suits ``[B, 2 D]``; use 1 for
            images ``[B, 2 C, H, W]`` with targets ``[B, C, H, W]``.
        missing: Whether targets may be NaN (not observed), as in :class:`Likelihood`.
        beta: The log density of a target counts :math:`\sigma^{2 \beta}` times, without a gradient of that weight
            (β-NLL, Seitzer et al. 2022). 0 is the likelihood, 1 gives means the gradient of squared errors; 0.5 is the
            paper's advice.
        warmup: Number of first evaluations in training (one for each draw of each step) in which σ is not the
            network's, but the root mean square of the batch's errors, by target.
        parametrization: ``"moments"``, or ``"natural"``: outputs are :math:`\eta_1 = \mu \lambda` and a raw precision
            :math:`\lambda = \mathrm{softplus}(r)`, with :math:`\sigma^2 = 1 / \lambda + \mathrm{floor}^2` (Immer et
            al. 2023).

    Raises:
        ValueError: If ``floor`` is negative, ``dim`` is no int or the dimension of the data, ``beta`` is not from 0 to
            1, ``warmup`` is negative, or ``parametrization`` is neither.
    """

    def __init__(
        self,
        floor: float = 1e-3,
        *,
        dim: int = -1,
        missing: bool = False,
        beta: float = 0.0,
        warmup: int = 0,
        parametrization: Literal["moments", "natural"] = "moments",
    ) -> None:
        super().__init__(floor, dim=dim, missing=missing)
        check_number("beta", beta, 0.0, 1.0)
        check_int("warmup", warmup, 0)
        if parametrization not in ("moments", "natural"):
            raise ValueError(f"parametrization: expected 'moments' or 'natural', got {parametrization!r}.")
        self.beta, self.warmup, self.parametrization = float(beta), warmup, parametrization
        if warmup:
            self.register_buffer("evaluations", torch.zeros((), dtype=torch.int64))

    evaluations: Tensor

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``loc`` and ``scale``."""
        first, raw = self.halves(outputs)
        if self.parametrization == "moments":
            return {"loc": first, "scale": self.positive(raw)}
        variance = _precision(raw).reciprocal()
        return {"loc": first * variance, "scale": (variance + self.floor**2).sqrt()}

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.Normal:
        """Normal with ``loc`` and ``scale``."""
        return dist.Normal(parameters["loc"], parameters["scale"])

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The observation's distribution; in training with ``beta`` and ``warmup``."""
        if not self.training or not (self.beta or self.warmup):
            return super().forward(outputs)
        parameters = self.parameters_of(widened(outputs))
        warming: Tensor | None = None
        if self.warmup:
            warming = self.evaluations < self.warmup
            self.evaluations += 1
        found = BetaNormal(parameters["loc"], parameters["scale"], self.beta, warming)
        return found.to_event(len(found.batch_shape) - 1)

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """Of the mean, ``1 / σ²``; of the raw scale, ``2 σ'² / σ²``; of natural parameters, by the chain rule."""
        if type(self) is not HeteroscedasticNormal:  # a subclass may have another density
            return super().fisher_information(outputs)
        first, raw = self.halves(outputs)
        if self.parametrization == "moments":
            inverse = self.positive(raw).square().reciprocal()
            return self.joined(inverse, 2.0 * raw.sigmoid().square() * inverse)
        part = _precision(raw).reciprocal()  # of the mean, and of the variance without the floor
        variance = part + self.floor**2
        slope = -part.square() * raw.sigmoid()
        of_mean = torch.stack([part, first * slope], -1) / variance.sqrt().unsqueeze(-1)
        of_variance = torch.stack([torch.zeros_like(slope), slope / (2.0**0.5 * variance)], -1)
        return self.in_pairs(outputs, torch.stack([of_mean, of_variance], -1))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        options = {"beta": self.beta, "warmup": self.warmup, "parametrization": self.parametrization}
        return {**super().config(), **options}


def _precision(raw: Tensor) -> Tensor:
    return F.softplus(raw) + 1e-6
