"""Gaussian noise of one scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.predictions import GaussianPrediction, Prediction
from pyrobnn.model.priors import FixedPrior
from pyrobnn.model.priors.base import is_positive

__all__ = ["Normal"]


class Normal(Likelihood):
    r"""Gaussian noise around the output: :math:`y \sim N(f(x), \sigma^2)`, one σ for all data.

    Args:
        scale: The noise's standard deviation: a positive number (fixed, or the start if ``learn_scale``), or a
            distribution on the positive reals (a latent site ``scale``, inferred with the weights).
        learn_scale: Fit σ by maximizing the ELBO.
        missing: Whether targets may be NaN (not observed), as in :class:`Likelihood`.

    Raises:
        ValueError: If ``scale`` is not positive, or both a distribution and to be learned.
    """

    def __init__(
        self, scale: float | dist.Distribution = 1.0, *, learn_scale: bool = False, missing: bool = False
    ) -> None:
        super().__init__(missing=missing)
        self.learn_scale = learn_scale
        self._latent = isinstance(scale, dist.Distribution)
        if isinstance(scale, dist.Distribution):
            if learn_scale:
                raise ValueError("scale: give a number to learn it as a parameter, or a prior to infer it, not both.")
            if not is_positive(scale):
                raise ValueError(
                    f"scale: its prior must have support on the positive reals (LogNormal, HalfNormal, Gamma …), got "
                    f"{type(scale).__name__}."
                )
            self.add_site("scale", FixedPrior(scale, torch.Size(), "scale"))
            return
        if not scale > 0:
            raise ValueError(f"scale: expected a positive standard deviation, got {scale}.")
        self.add_plain("noise", _NoiseScale(float(scale), learn_scale))

    @pyro_method  # outside of Pyro's context a latent site would be a nameless draw from its prior
    def noise_scale(self) -> Tensor:
        """The present standard deviation (a sample statement where it is latent)."""
        return self.scale if self._latent else self._plain["noise"]()

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The outputs as ``loc``, and σ as ``scale``."""
        return {"loc": outputs, "scale": self.noise_scale().expand_as(outputs)}

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.Normal:
        """Normal with ``loc`` and ``scale``."""
        return dist.Normal(parameters["loc"], parameters["scale"])

    def closed_form(self, outputs: Tensor, covariance: Tensor, num_samples: int) -> Prediction | None:
        """Gaussian: the outputs' covariance and the noise add up."""
        if type(self) is not Normal:  # a subclass may have another density
            return None
        aleatoric = self.noise_scale().square().expand_as(outputs)
        epistemic = covariance.diagonal(dim1=-2, dim2=-1).reshape(outputs.shape)
        return GaussianPrediction(
            mean=outputs,
            total=aleatoric + epistemic,
            aleatoric=aleatoric,
            epistemic=epistemic,
            num_samples=num_samples,
            likelihood=self,
            covariance=covariance + torch.diag_embed(aleatoric.flatten(1)),
        )

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """That of the outputs."""
        return outputs.shape

    def config(self) -> dict[str, Any]:
        """Constructor arguments; a latent scale's prior is described by its module."""
        return {"learn_scale": self.learn_scale, **super().config()}


class _NoiseScale(nn.Module):
    """A positive number, fixed or trained in log space."""

    def __init__(self, scale: float, learned: bool) -> None:
        super().__init__()
        log_scale = torch.tensor(scale).log()
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self) -> Tensor:
        return self.log_scale.exp()
