r"""Mixtures of Gaussians whose shares, means and scales depend on the input.

.. math::  p(y \mid x) = \sum_{k=1}^K \pi_k(x) \prod_d N(y_d; \mu_{kd}(x), \sigma_{kd}(x)^2)

(Bishop 1994).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.distributions.gaussian_mixture import GaussianMixture
from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.modes import Modes, mixture_modes
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.paired import warn_of_floor
from pyrobnn.model.likelihoods.reductions import MomentReduction, Reduction

__all__ = ["MixtureDensity", "MixtureDensityPrediction"]


@explained
class MixtureDensity(Likelihood):
    r"""Mixture density network: outputs ``[B, K (1 + 2 D)]`` are K logits, K · D means, then K · D raw scales.

    Means and raw scales are those of the D targets of component 1, then of component 2, and so on;
    :math:`\sigma = \mathrm{softplus}(r) + \mathrm{floor}`. The targets of a row share the component, so that they
    depend on each other. For ``num_components=1`` the density is that of
    :class:`~pyrobnn.likelihoods.HeteroscedasticNormal`. Where the density has several modes, the mean may lie between
    them: see :meth:`MixtureDensityPrediction.modes`.

    Args:
        num_components: Number K of components.
        floor: Smallest standard deviation, which keeps the likelihood bounded.
        dim: Dimension of the outputs that holds all of these, counted from the end: -1 for ``[B, ...]``, -3 for images
            ``[B, C, H, W]``, whose pixels then have mixtures of their own.
        missing: Whether targets may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`; they are
            integrated out.

    Raises:
        ValueError: If ``num_components`` is below 1, ``floor`` negative, or ``dim`` no negative int.
    """

    def __init__(self, num_components: int, floor: float = 1e-3, *, dim: int = -1, missing: bool = False) -> None:
        super().__init__(missing=missing)
        check_positive_int("num_components", num_components)
        check_non_negative("floor", floor, "standard deviation")
        if isinstance(dim, bool) or not isinstance(dim, int) or dim >= 0:
            raise ValueError(f"dim: expected a dimension of the outputs counted from the end, such as -1, got {dim!r}.")
        self.num_components, self.floor, self.dim = num_components, float(floor), dim
        self._has_warned = False

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``logits [B, K, 1]``, ``loc`` and ``scale [B, K, D]``; components before the targets' dimension ``dim``."""
        components, targets = self.num_components, self.target_shape(outputs)[self.dim]
        sizes = [components, components * targets, components * targets]
        logits, loc, raw = outputs.split(sizes, self.dim)
        shape = (components, targets)
        return {
            "logits": logits.unsqueeze(self.dim),
            "loc": loc.unflatten(self.dim, shape),
            "scale": F.softplus(raw.unflatten(self.dim, shape)) + self.floor,
        }

    def distribution(self, parameters: Mapping[str, Tensor]) -> GaussianMixture:
        """The mixture; its event holds the targets from ``dim`` on."""
        logits, loc, scale = parameters["logits"], parameters["loc"], parameters["scale"]
        return GaussianMixture(logits, loc, scale, -self.dim, missing=self.missing)

    def observation(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The :meth:`distribution`, which integrates missing targets out by itself."""
        return self.distribution(parameters)

    def marginal(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The mixture of each target alone."""
        return self.distribution(parameters).marginal()

    def rescaled(self, parameters: Mapping[str, Tensor], loc: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """The parameters of ``loc + scale · y``."""
        dims = -self.dim

        def shaped(value: Tensor) -> Tensor:  # a dimension for the components, before those of the event
            return value.unsqueeze(-dims - 1) if value.dim() >= dims else value

        return {
            "logits": parameters["logits"],
            "loc": shaped(loc) + shaped(scale) * parameters["loc"],
            "scale": shaped(scale) * parameters["scale"],
        }

    def reduction(self, num_samples: int, *, keep: bool, max_bytes: int) -> Reduction:
        """Mean, variance and components of each draw."""
        return _Reduction(self, num_samples, keep=keep, max_bytes=max_bytes)

    def notice(self, parameters: Mapping[str, Tensor]) -> None:
        """Warns once if more than a hundredth of the scales is at the floor."""
        if not self._has_warned and self.floor:
            self._has_warned = warn_of_floor(self, parameters["scale"], self.floor)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """The outputs' shape with D in place of K (1 + 2 D)."""
        size = outputs.shape[self.dim] if outputs.dim() > -self.dim else 0
        targets, rest = divmod(size - self.num_components, 2 * self.num_components)
        if targets < 1 or rest:
            raise ValueError(
                f"net: MixtureDensity({self.num_components}) expects {self.num_components} * (1 + 2 D) outputs for D "
                f"targets along dim={self.dim}, such as {3 * self.num_components} for one, got shape "
                f"{tuple(outputs.shape)}; change the last layer, or dim."
            )
        shape = list(outputs.shape)
        shape[self.dim] = targets
        return torch.Size(shape)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        own = {"num_components": self.num_components, "floor": self.floor, "dim": self.dim}
        return {**own, **super().config()}


@dataclass
class MixtureDensityPrediction(MomentPrediction):
    """Beside mean, variance, probabilities and quantiles: the modes."""

    def modes(self, max_modes: int = 5) -> Modes:
        """Local maxima of the posterior predictive density of each target alone, the highest first.

        Args:
            max_modes: The most that are returned.

        Returns:
            Places and log densities, ``[M, N, …]`` each; NaN and minus infinity where a target has fewer than M.

        Raises:
            ValueError: If ``max_modes`` is no positive int, or the draws were not kept.
        """
        check_positive_int("max_modes", max_modes)
        likelihood = self.likelihood
        assert isinstance(likelihood, MixtureDensity)
        each = likelihood.distribution(self._kept("modes")).marginal()
        return mixture_modes(each, max_modes)


class _Reduction(MomentReduction):
    def finish(self, targets: Tensor | None) -> MixtureDensityPrediction:
        return MixtureDensityPrediction(**vars(super().finish(targets)))
