r"""Mixtures of Gaussians whose shares, means and scales depend on the input.

.. math::  p(y \mid x) = \sum_{k=1}^K \pi_k(x) \prod_d N(y_d; \mu_{kd}(x), \sigma_{kd}(x)^2)
           \quad\text{or}\quad \sum_{k=1}^K \pi_k(x)\, N(y; \mu_k(x), L_k(x) L_k(x)^\top)

(Bishop 1994; Williams 1996).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.distributions.correlated_gaussian_mixture import CorrelatedGaussianMixture
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

    With full covariances :math:`\sigma` is the diagonal of the lower Cholesky factors :math:`L_k`, and outputs
    ``[B, K (1 + 2 D + D (D - 1) / 2)]`` go on with their entries below the diagonal: those of component 1, row after
    row, then those of component 2, and so on.

    Args:
        num_components: Number K of components.
        floor: Smallest standard deviation, which keeps the likelihood bounded; with full covariances, of a target given
            those before it.
        covariance: Of each component, ``"diagonal"`` or ``"full"``.
        dim: Dimension of the outputs that holds all of these, counted from the end: -1 for ``[B, ...]``, -3 for images
            ``[B, C, H, W]``, whose pixels then have mixtures of their own.
        missing: Whether targets may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`; they are
            integrated out.

    Raises:
        ValueError: If ``num_components`` is below 1, ``floor`` negative, ``dim`` no negative int, or ``covariance``
            neither.
    """

    def __init__(
        self,
        num_components: int,
        floor: float = 1e-3,
        *,
        covariance: Literal["diagonal", "full"] = "diagonal",
        dim: int = -1,
        missing: bool = False,
    ) -> None:
        super().__init__(missing=missing)
        check_positive_int("num_components", num_components)
        check_non_negative("floor", floor, "standard deviation")
        if isinstance(dim, bool) or not isinstance(dim, int) or dim >= 0:
            raise ValueError(f"dim: expected a dimension of the outputs counted from the end, such as -1, got {dim!r}.")
        if covariance not in ("diagonal", "full"):
            raise ValueError(f"covariance: expected 'diagonal' or 'full', got {covariance!r}.")
        self.num_components, self.floor, self.dim, self.covariance = num_components, float(floor), dim, covariance
        self._has_warned = False

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``logits [B, K, 1]``, ``loc`` and ``scale [B, K, D]``; components before the targets' dimension ``dim``.

        With full covariances ``scale_tril [B, K, D, D]`` in place of ``scale``.
        """
        components, targets = self.num_components, self.target_shape(outputs)[self.dim]
        sizes = [components, components * targets, components * targets]
        logits, loc, raw, below = outputs.split([*sizes, outputs.shape[self.dim] - sum(sizes)], self.dim)
        shape = (components, targets)
        scale = F.softplus(raw.unflatten(self.dim, shape)) + self.floor
        found = {"logits": logits.unsqueeze(self.dim), "loc": loc.unflatten(self.dim, shape)}
        if self.covariance == "diagonal":
            return {**found, "scale": scale}
        entries = torch.cat([scale, below.unflatten(self.dim, (components, targets * (targets - 1) // 2))], self.dim)
        return {**found, "scale_tril": _lower_triangle(entries, targets, self.dim)}

    def distribution(self, parameters: Mapping[str, Tensor]) -> GaussianMixture:
        """The mixture; its event holds the targets from ``dim`` on."""
        logits, loc = parameters["logits"], parameters["loc"]
        if self.covariance == "full":
            factor = parameters["scale_tril"]
            return CorrelatedGaussianMixture(logits, loc, factor, -self.dim, missing=self.missing)
        return GaussianMixture(logits, loc, parameters["scale"], -self.dim, missing=self.missing)

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

        found = {"logits": parameters["logits"], "loc": shaped(loc) + shaped(scale) * parameters["loc"]}
        if self.covariance == "diagonal":
            return {**found, "scale": shaped(scale) * parameters["scale"]}
        rows = shaped(scale).unsqueeze(-dims) if scale.dim() >= dims else scale
        return {**found, "scale_tril": rows * parameters["scale_tril"]}

    def reduction(self, num_samples: int, *, keep: bool, max_bytes: int) -> Reduction:
        """Mean, variance and components of each draw."""
        return _Reduction(self, num_samples, keep=keep, max_bytes=max_bytes)

    def notice(self, parameters: Mapping[str, Tensor]) -> None:
        """Warns once if more than a hundredth of the scales is at the floor."""
        if not self._has_warned and self.floor:
            if self.covariance == "full":
                scale = parameters["scale_tril"].diagonal(dim1=self.dim - 1, dim2=self.dim)
            else:
                scale = parameters["scale"]
            self._has_warned = warn_of_floor(self, scale, self.floor)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """The outputs' shape with D in place of the number of outputs."""
        size = outputs.shape[self.dim] if outputs.dim() > -self.dim else 0
        per_component, rest = divmod(size, self.num_components)
        targets, between = (per_component - 1) // 2, 0
        if self.covariance == "full":  # (D² + 3 D) / 2 beside the logit
            targets = (math.isqrt(max(0, 8 * per_component + 1)) - 3) // 2
            between = targets * (targets - 1) // 2
        if targets < 1 or rest or per_component != 1 + 2 * targets + between:
            full = self.covariance == "full"
            formula, name = ("1 + 2 D + D (D - 1) / 2", ", covariance='full'") if full else ("1 + 2 D", "")
            raise ValueError(
                f"net: MixtureDensity({self.num_components}{name}) expects {self.num_components} * ({formula}) outputs "
                f"for D targets along dim={self.dim}, such as {3 * self.num_components} for one, got shape "
                f"{tuple(outputs.shape)}; change the last layer, or dim."
            )
        shape = list(outputs.shape)
        shape[self.dim] = targets
        return torch.Size(shape)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        own = {"num_components": self.num_components, "floor": self.floor, "covariance": self.covariance}
        return {**own, "dim": self.dim, **super().config()}


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


def _lower_triangle(entries: Tensor, size: int, dim: int) -> Tensor:
    """Triangles, rows then columns in place of ``dim``, of entries on the diagonal and those below it, row by row."""
    zeros = torch.zeros_like(entries.narrow(dim, 0, 1))
    last = entries.shape[dim]
    places = [
        [j if i == j else (size + i * (i - 1) // 2 + j if j < i else last) for j in range(size)] for i in range(size)
    ]
    index = torch.tensor(places, device=entries.device).flatten()
    return torch.cat([entries, zeros], dim).index_select(dim, index).unflatten(dim, (size, size))


class _Reduction(MomentReduction):
    def finish(self, targets: Tensor | None) -> MixtureDensityPrediction:
        return MixtureDensityPrediction(**vars(super().finish(targets)))
