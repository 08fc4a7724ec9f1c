r"""Gaussian posterior with a diagonal plus low-rank covariance over all sites jointly.

.. math::  q(u) = N(u;\, \mu,\, \mathrm{diag}(\sigma^2) + F F^\top), \qquad u = \mu + \sigma \epsilon + F z,

with :math:`\epsilon \in \mathbb{R}^d` and :math:`z \in \mathbb{R}^r` standard normal, over the flat unconstrained
vector :math:`u` of d elements. The r columns of F are the directions in which weights vary *together*, within and
across layers, which mean field cannot have; with ``rank = d`` it can represent every Gaussian. The divergence splits
into minus the joint entropy, by the matrix determinant lemma, and one cross-entropy per site,

.. math::  \mathrm{KL}(q \,\|\, p) = -H(q) + \sum_s E_q[-\log p(u_s)].

A prior that factorizes over elements sees no more than the marginals :math:`N(\mu_i, v_i)`,
:math:`v_i = \sigma_i^2 + \sum_k F_{ik}^2`, so that wherever mean field has a closed-form KL the cross-entropy,
:math:`\mathrm{KL}(N(\mu_i, v_i) \,\|\, p_i) + H(N(\mu_i, v_i))` summed over i, is exact too.

Ong, Nott & Smith, *Gaussian variational approximation with a factor covariance structure* (2018). Parameters:
``loc`` and ``log_scale``, ``[d]``, and ``cov_factor``, the transpose of F, ``[r, d]``; see
:mod:`pyrobnn.guides.components.low_rank`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.base import Guide
from pyrobnn.guides.components.low_rank import (
    LowRankGaussian,
    cross_entropies,
    independent_normal,
    joint_divergence,
    joint_log_prob,
    on_support,
    sample_jointly,
)
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import Init, initial_values
from pyrobnn.steps.base import Step
from pyrobnn.steps.low_rank import LowRankStep

__all__ = ["LowRankNormal"]

_COPIES = 4  # of the factor: itself, its gradient, and the two moments that Adam keeps


@explained
class LowRankNormal(Guide):
    """One Gaussian over all latent sites, its covariance a diagonal plus a matrix of low rank.

    Args:
        model: The Pyro model.
        rank: Number r of columns of the factor; more than there are latent elements is taken as that number.
        init: Where the mean starts, as for :class:`~pyrobnn.guides.MeanField`.
        init_scale: Starting standard deviation in unconstrained space. Half of the variance is the diagonal's, half
            the factor's, whose start is random: at zero its gradient would vanish.
        max_bytes: Budget for what the factor costs in training: the ``[d, r]`` numbers four times over, for the
            factor, its gradient and the two moments of Adam. (The rest is what mean field costs.)
        antithetic: As for :class:`~pyrobnn.guides.MeanField`.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Raises:
        ValueError: If ``rank`` is no positive int or its factor exceeds ``max_bytes``, ``init_scale`` is not
            positive, or a starting value does not fit.
    """

    sizes = ("rank",)

    def __init__(
        self,
        model: Callable[..., Any],
        rank: int = 10,
        init: Init = None,
        *,
        init_scale: float = 1e-2,
        max_bytes: int = 2**30,
        antithetic: bool = True,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        check_positive_int("rank", rank)
        check_positive("init_scale", init_scale, "standard deviation")
        check_positive_int("max_bytes", max_bytes)
        loc = self.layout.join(initial_values(model, self.layout, init))
        self.rank, self.max_bytes, self.antithetic = min(rank, self.layout.size), max_bytes, antithetic
        self._check_budget(loc.element_size())
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.full_like(loc, math.log(init_scale * 0.5**0.5)))
        factor = torch.randn(self.layout.size, self.rank, dtype=loc.dtype, device=loc.device)
        factor.mul_(init_scale * (0.5 / self.rank) ** 0.5)
        self.cov_factor = nn.Parameter(factor.T.contiguous())

    def _check_budget(self, element_size: int) -> None:
        per_column = _COPIES * self.layout.size * element_size
        if self.rank * per_column > self.max_bytes:
            raise ValueError(
                f"rank: a factor of rank {self.rank} over {self.layout.size:,} latent elements, with its gradient and "
                f"Adam's two moments, takes {self.rank * per_column:,} bytes, more than max_bytes={self.max_bytes:,}; "
                f"use a rank of at most {self.max_bytes // per_column}, raise max_bytes, or use it for fewer sites "
                "(Composite)."
            )

    # Read past Pyro's attribute hooks, which would enter them in the global parameter store.

    @property
    def flat_loc(self) -> nn.Parameter:
        """Mean of the flat vector."""
        return self._parameters["loc"]  # type: ignore[return-value]

    @property
    def flat_log_scale(self) -> nn.Parameter:
        """Half the log of the covariance's diagonal part."""
        return self._parameters["log_scale"]  # type: ignore[return-value]

    @property
    def flat_cov_factor(self) -> Tensor:
        """F, ``[d, r]``; the parameter is its transpose, whose rows training works on."""
        return self._parameters["cov_factor"].T  # type: ignore[union-attr]

    def scale_parameters(self) -> list[nn.Parameter]:
        """The log scales, for a learning rate of their own; the factor is in the units of the weights."""
        return [self.flat_log_scale]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"rank": self.rank, "max_bytes": self.max_bytes, "antithetic": self.antithetic}

    # -------------------------------------------------------------------------------------- distribution

    def joint(self) -> LowRankGaussian:
        """The distribution of the flat unconstrained vector (gradients attached)."""
        return LowRankGaussian(self.flat_loc, self.flat_log_scale.exp(), self.flat_cov_factor)

    @property
    def facts(self) -> Facts:
        """One joint density of all sites."""
        names = frozenset(self.layout)
        return Facts(sites=names, density=names, independent=(names,), noise_size=self.layout.size + self.rank)

    def marginal(self, name: str) -> dist.Distribution:
        """The marginal of one site, whose elements are correlated."""
        site = self.layout[name]
        window, shape = site.window, site.unconstrained_shape
        gaussian = LowRankGaussian(
            self.flat_loc[window].view(shape),
            self.flat_log_scale[window].view(shape).exp(),
            self.flat_cov_factor[window].reshape(*shape, self.rank),
        )
        return on_support(site, gaussian)

    def elementwise_marginal(self, name: str) -> dist.Distribution:
        """Each element of the site by itself: independent Gaussians of the right means and variances."""
        site = self.layout[name]
        window, shape = site.window, site.unconstrained_shape
        scale, factor = self.flat_log_scale[window].exp(), self.flat_cov_factor[window]
        variance = scale.square() + factor.square().sum(-1)
        return independent_normal(site, self.flat_loc[window].view(shape), variance.sqrt().view(shape))

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """One node of the graph from the flat parameters to the sites' values."""
        if not sequential:
            return super().step(model, estimators, sequential=False)
        factor = self._parameters["cov_factor"]
        assert factor is not None
        parameters = self.flat_loc, self.flat_log_scale, factor
        return LowRankStep(self.layout, *parameters, self._cross_entropies, antithetic=self.antithetic)

    def _cross_entropies(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> tuple[dict[str, Tensor], bool]:
        """Those of some sites, in the graph of the parameters, and whether all are exact."""

        def moments(name: str) -> tuple[Tensor, Tensor]:
            site = self.layout[name]
            window, shape = site.window, site.unconstrained_shape
            variance = self.flat_log_scale[window].mul(2.0).exp() + self.flat_cov_factor[window].square().sum(-1)
            return self.flat_loc[window].view(shape), variance.view(shape)

        return cross_entropies(self.layout, moments, draws, priors)

    def starting_point(self) -> Draws:
        """The mean, where other guides start."""
        return Draws(self.layout.constrain(self.layout.split(self.flat_loc.detach())))

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One reparameterized draw, ``μ + σε + Fz``; ``noise`` holds ε, then z."""
        gaussian = self.joint()
        if noise is None:
            noise = self.flat_loc.new_empty(self.layout.size + self.rank).normal_()
        draw = self.layout.constrain(self.layout.split(gaussian.rsample(noise=noise)))
        # One window of the factor per site would make the backward pass write the whole factor's gradient once per
        # site, so the divergence of this draw uses moments that were computed together.
        moments = (self.layout.split(gaussian.loc), self.layout.split(gaussian.variance), gaussian)
        return Draws(draw, record=moments)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}``, all sites in one product."""
        return Draws(self.layout.constrain(self.layout.split(self.joint().rsample(torch.Size([num_samples])))))

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Joint log density of draws ``{site: [K, *site shape]}`` on the sites' own supports, shape ``[K]``."""
        return joint_log_prob(self.layout, self.joint(), draws)

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The KL: minus the joint entropy plus a cross-entropy by site
        (:func:`~pyrobnn.guides.components.low_rank`).
        """
        record = draws.record
        if record is None:
            gaussian = self.joint()
            record = (self.layout.split(gaussian.loc), self.layout.split(gaussian.variance), gaussian)
        locs, variances, gaussian = record
        return joint_divergence(
            self.layout, lambda name: (locs[name], variances[name]), gaussian.entropy(), draws, priors
        )

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide as Pyro calls it: an auxiliary site for the flat vector, from which each latent site follows."""
        self.announce_parameters()
        return sample_jointly(self.layout, self.joint())
