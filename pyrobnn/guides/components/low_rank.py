r"""Gaussians with a diagonal plus low-rank covariance, for guides that couple their sites.

.. math::  u \sim N(\mu, \Sigma), \qquad \Sigma = \mathrm{diag}(\sigma^2) + F F^\top, \qquad F: d \times r.

With :math:`B = \mathrm{diag}(\sigma)^{-1} F` and the r × r capacitance :math:`C = I + B^\top B` the matrix
determinant lemma and Woodbury's identity give, for :math:`v = (u - \mu) / \sigma` and :math:`a = C^{-1} B^\top v`,

.. math::  \log\det\Sigma = 2 \sum_i \log\sigma_i + \log\det C, \qquad
           (u - \mu)^\top \Sigma^{-1} (u - \mu) = \|v - B a\|^2 + \|a\|^2,

where the sum of squares, unlike the usual difference, cannot cancel. Time and memory are O(d r) plus O(r³);
nothing of size d × d is ever made. :class:`LowRankGaussian` is the distribution; the functions turn one over the
flat unconstrained vector of a guide into that of a site, a density on the sites' supports, and sample statements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import kl_divergence

from pyrobnn.guides.base import sample_site
from pyrobnn.guides.components.point import PointMass
from pyrobnn.model.divergence import Divergence, PriorTerm, refuse_missing
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout, Site

__all__ = [
    "LowRankGaussian",
    "cross_entropies",
    "independent_normal",
    "joint_divergence",
    "joint_log_prob",
    "on_support",
    "sample_jointly",
]


class LowRankGaussian(dist.TorchDistribution):
    """``N(loc, diag(scale²) + F Fᵀ)`` over all elements of a tensor of any shape.

    Args:
        loc: Mean, ``[*shape]``.
        scale: Square roots of the diagonal part, ``[*shape]``.
        cov_factor: F, ``[*shape, r]``.
        validate_args: Whether to check the arguments; as Pyro is set up if None.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "cov_factor": constraints.real,
    }
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, cov_factor: Tensor, validate_args: bool | None = None) -> None:
        if loc.shape != scale.shape or cov_factor.shape[:-1] != loc.shape or cov_factor.dim() != loc.dim() + 1:
            raise ValueError(
                f"cov_factor: expected a scale of shape {tuple(loc.shape)}, that of loc, and a factor of shape "
                f"{(*loc.shape, 'rank')}, got {tuple(scale.shape)} and {tuple(cov_factor.shape)}."
            )
        self.loc, self.scale, self.cov_factor = loc, scale, cov_factor
        self._cholesky: Tensor | None = None
        super().__init__(event_shape=loc.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """All real tensors of the shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """``loc``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance, ``[*shape]``."""
        return self.scale.square() + self.cov_factor.square().sum(-1)

    def rsample(
        self, sample_shape: torch.Size | list[int] | tuple[int, ...] = (), noise: Tensor | None = None
    ) -> Tensor:
        """``μ + σ ε + F z``, shape ``[*sample_shape, *shape]``; ``noise`` holds one ε, then one z, ``[d + r]``."""
        lead = torch.Size(sample_shape)
        rank = self.cov_factor.shape[-1]
        if noise is None:
            noise = torch.randn(lead + self.event_shape, dtype=self.loc.dtype, device=self.loc.device)
            weights = torch.randn((*lead, rank), dtype=self.loc.dtype, device=self.loc.device)
        else:
            noise, weights = noise.split([self.loc.numel(), rank])
            noise = noise.view(self.event_shape)
        coupled = weights @ self.cov_factor.reshape(-1, rank).T
        return torch.addcmul(coupled.reshape(lead + self.event_shape), self.scale, noise) + self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``[*lead, *shape]``, shape ``[*lead]``."""
        if self._validate_args:
            self._validate_sample(value)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        centered = ((value - self.loc) / self.scale).reshape(-1, self.loc.numel())
        whitened = self._whitened_factor()
        inner = torch.cholesky_solve((centered @ whitened).T, self._capacitance_cholesky()).T
        distance = (centered - inner @ whitened.T).square().sum(-1) + inner.square().sum(-1)
        normalizer = 0.5 * (self.loc.numel() * math.log(2.0 * math.pi) + self._log_determinant())
        return -normalizer - 0.5 * distance.reshape(lead)

    def entropy(self) -> Tensor:
        r"""``½ (d (1 + log 2π) + log det Σ)``, a scalar."""
        return 0.5 * (self.loc.numel() * (1.0 + math.log(2.0 * math.pi)) + self._log_determinant())

    def _whitened_factor(self) -> Tensor:
        """B, ``[d, r]``."""
        inverse = self.scale.reciprocal().unsqueeze(-1)  # the gradient of a division by a column makes twice the passes
        return (self.cov_factor * inverse).reshape(-1, self.cov_factor.shape[-1])

    def _capacitance_cholesky(self) -> Tensor:
        """Cholesky factor of C, ``[r, r]``; NaN if there is none, and objectives then name the part."""
        if self._cholesky is None:
            whitened = self._whitened_factor()
            gram = (whitened.T @ whitened).double()  # rounding must not hide the identity
            cholesky, failed = torch.linalg.cholesky_ex(
                gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            )
            self._cholesky = torch.where(failed > 0, math.nan, cholesky).to(whitened.dtype)
        return self._cholesky

    def _log_determinant(self) -> Tensor:
        return 2.0 * (self.scale.log().sum() + self._capacitance_cholesky().diagonal().log().sum())


# ------------------------------------------------------------------------------------- on the sites of a guide


def on_support(site: Site, gaussian: LowRankGaussian) -> dist.Distribution:
    """A Gaussian over a site's unconstrained value, pushed to the site's support."""
    return gaussian if site.is_real else dist.TransformedDistribution(gaussian, [site.transform])


def independent_normal(site: Site, loc: Tensor, scale: Tensor) -> Any:
    """Independent Gaussians over a site's unconstrained elements, pushed to the site's support."""
    base = dist.Normal(loc, scale)
    if site.is_real:
        return base.to_event(site.event_dim)
    transformed = dist.TransformedDistribution(base, [site.transform])
    return transformed.to_event(site.event_dim - site.transform.codomain.event_dim)


def joint_log_prob(layout: Layout, gaussian: Any, draws: Mapping[str, Tensor]) -> Tensor:
    """Log density ``[K]`` of draws ``{site: [K, *site shape]}`` on the sites' supports.

    Args:
        layout: The sites.
        gaussian: The distribution of the flat unconstrained vector.
        draws: A value of every site.
    """
    values = {name: draws[name] for name in layout}
    pieces = layout.unconstrain(values)
    return gaussian.log_prob(layout.join(pieces)) - layout.log_jacobian(pieces, values, lead=1)


def joint_divergence(
    layout: Layout,
    moments: Callable[[str], tuple[Tensor, Tensor]],
    entropy: Tensor,
    draws: Draws,
    priors: Mapping[str, PriorTerm],
) -> Divergence:
    r"""``KL(q ‖ p)`` of a Gaussian over the flat vector: ``-H(q)`` plus a cross-entropy ``E[-log p(u)]`` by site.

    A prior that factorizes over elements sees no more than the marginals :math:`N(\mu_i, v_i)`, so that the
    cross-entropy is exact wherever torch or Pyro registers a KL between independent Gaussians on the site's support and
    the prior; else it is ``-log p(v) - log |dv/du|`` of the draw. Scales and masks of the model weigh the
    cross-entropies; the joint entropy has none of its own.

    Args:
        layout: The sites, all of which must have a prior in ``priors``.
        moments: Mean and variance of the elements of a site, of its unconstrained shape.
        entropy: Entropy of the flat unconstrained vector.
        draws: A draw.
        priors: Priors as the run of the model under this draw applied them.

    Raises:
        ValueError: If a site is missing: coupled sites have no divergence without each other.
    """
    refuse_missing(layout, priors)
    terms, exact = cross_entropies(layout, moments, draws, priors)
    return Divergence.of_sites(terms, -entropy, exact)


def cross_entropies(
    layout: Layout,
    moments: Callable[[str], tuple[Tensor, Tensor]],
    draws: Mapping[str, Tensor],
    priors: Mapping[str, PriorTerm],
) -> tuple[dict[str, Tensor], bool]:
    """The cross-entropies of :func:`joint_divergence` of the sites in ``priors``, and whether all are exact."""
    terms, exact = {}, True
    for name, term in priors.items():
        site, (loc, variance) = layout[name], moments(name)
        marginals = independent_normal(site, loc, variance.sqrt())
        try:
            kl = kl_divergence(marginals, term.distribution)
            score = kl + _entropy(marginals).reshape(*kl.shape, -1).sum(-1)
        except NotImplementedError:
            value, exact = draws[name], False
            log_jacobian = site.log_jacobian(site.unconstrain(value), value, value.dim() - site.event_dim)
            score = -term.distribution.log_prob(value) - log_jacobian
        terms[name] = term.sum(score)
    return terms, exact


def sample_jointly(layout: Layout, gaussian: Any) -> dict[str, Tensor]:
    """Pyro's view of a joint Gaussian: one auxiliary site, and the model's sites as functions of it.

    The sites are point masses given the auxiliary one; their log densities hold the Jacobians of constrained
    sites, so that those of all sites together add up to the guide's.
    """
    name = f"_joint:{next(iter(layout))}"  # unlike that of another guide for other sites of the model
    flat = pyro.sample(name, gaussian, infer={"is_auxiliary": True})
    values = {}
    for name, unconstrained in layout.split(flat).items():
        site = layout[name]
        value = site.constrain(unconstrained)
        log_det = site.log_jacobian(unconstrained, value, value.dim() - site.event_dim)
        values[name] = sample_site(site, PointMass(value, -log_det, event_dim=site.event_dim))
    return values


def _entropy(marginals: Any) -> Tensor:
    """Entropies of the unconstrained elements."""
    while not isinstance(marginals, dist.Normal):
        marginals = marginals.base_dist
    return marginals.entropy()
