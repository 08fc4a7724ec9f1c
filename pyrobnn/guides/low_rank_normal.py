r"""Gaussian posterior with a diagonal plus low-rank covariance over all sites together.

.. math::  q(u) = N(u;\, \mu,\, \mathrm{diag}(\sigma^2) + F F^\top), \qquad u = \mu + \sigma \epsilon + F z,

with :math:`\epsilon \in \mathbb{R}^d` and :math:`z \in \mathbb{R}^r` standard normal, over the flat unconstrained
vector :math:`u` of d elements. The r columns of F are the directions in which weights vary *together*, within and
across layers, which mean field cannot have; with ``rank = d`` every Gaussian is within reach. The divergence splits
into minus the joint entropy, by the matrix determinant lemma, and one cross-entropy per site,

.. math::  \mathrm{KL}(q \,\|\, p) = -H(q) + \sum_s E_q[-\log p(u_s)].

A prior that factorises over elements sees no more than the marginals :math:`N(\mu_i, v_i)`,
:math:`v_i = \sigma_i^2 + \sum_k F_{ik}^2`, so that wherever mean field has a closed-form KL the cross-entropy,
:math:`\mathrm{KL}(N(\mu_i, v_i) \,\|\, p_i) + H(N(\mu_i, v_i))` summed over i, is exact too.

Ong, Nott & Smith, *Gaussian variational approximation with a factor covariance structure* (2018). Parameters:
``loc`` and ``log_scale``, ``[d]``, and ``cov_factor``, ``[d, r]``; see :mod:`pyrobnn.guides.low_rank`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrobnn.arguments import check_positive, check_positive_int
from pyrobnn.guides.base import Guide, Init, Site, initial_values
from pyrobnn.guides.flat import independent_normal
from pyrobnn.guides.low_rank import LowRankGaussian, joint_log_prob, on_support, sample_jointly

__all__ = ["LowRankNormal"]

_COPIES = 4  # of the factor: itself, its gradient, and the two moments that Adam keeps


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
        example: Arguments of one run, for models whose sites are not known without data.
        only: Names of the sites that the guide is for; all of them if None.

    Raises:
        ValueError: If ``rank`` is no positive int or its factor exceeds ``max_bytes``, ``init_scale`` is not
            positive, or a starting value does not fit.
    """

    transient: ClassVar[frozenset[str]] = Guide.transient | {"_drawn"}

    def __init__(
        self,
        model: Callable[..., Any],
        rank: int = 10,
        init: Init = None,
        *,
        init_scale: float = 1e-2,
        max_bytes: int = 2**30,
        example: tuple[Any, ...] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, only=only)
        check_positive_int("rank", rank)
        check_positive("init_scale", init_scale, "standard deviation")
        check_positive_int("max_bytes", max_bytes)
        loc = self.join(initial_values(model, self.sites, init))
        self.rank, self.max_bytes = min(rank, self.num_latents), max_bytes
        self._check_budget(loc.element_size())
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.full_like(loc, math.log(init_scale * 0.5**0.5)))
        factor = torch.randn(self.num_latents, self.rank, dtype=loc.dtype, device=loc.device)
        self.cov_factor = nn.Parameter(factor.mul_(init_scale * (0.5 / self.rank) ** 0.5))
        self._drawn: _Drawn | None = None

    def _check_budget(self, element_size: int) -> None:
        per_column = _COPIES * self.num_latents * element_size
        if self.rank * per_column > self.max_bytes:
            raise ValueError(
                f"rank: a factor of rank {self.rank} over {self.num_latents:,} latent elements, with its gradient and "
                f"Adam's two moments, takes {self.rank * per_column:,} bytes, more than max_bytes={self.max_bytes:,}; "
                f"ask for a rank of at most {self.max_bytes // per_column}, raise max_bytes, or keep to some of the "
                "sites (GuideMap)."
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
    def flat_cov_factor(self) -> nn.Parameter:
        """F, ``[d, r]``."""
        return self._parameters["cov_factor"]  # type: ignore[return-value]

    def scale_parameters(self) -> list[nn.Parameter]:
        """The log scales, for a learning rate of their own; the factor is in the units of the weights."""
        return [self.flat_log_scale]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"rank": self.rank, "max_bytes": self.max_bytes}

    # -------------------------------------------------------------------------------------- distribution

    def gaussian(self) -> LowRankGaussian:
        """The distribution of the flat unconstrained vector (gradients attached)."""
        return LowRankGaussian(self.flat_loc, self.flat_log_scale.exp(), self.flat_cov_factor)

    def factor(self, site: Site) -> dist.Distribution:
        """The site's own marginal, which couples its elements with each other."""
        window, shape = slice(site.offset, site.offset + site.numel), site.unconstrained_shape
        marginal = LowRankGaussian(
            self.flat_loc[window].view(shape),
            self.flat_log_scale[window].view(shape).exp(),
            self.flat_cov_factor[window].view(*shape, self.rank),
        )
        return on_support(site, marginal)

    def marginals(self, site: Site) -> dist.Distribution:
        """Each element of the site by itself: independent Gaussians of the right means and variances."""
        window, shape = slice(site.offset, site.offset + site.numel), site.unconstrained_shape
        scale, factor = self.flat_log_scale[window].exp(), self.flat_cov_factor[window]
        variance = scale.square() + factor.square().sum(-1)
        return independent_normal(site, self.flat_loc[window].view(shape), variance.sqrt().view(shape))

    def draw(self) -> dict[str, Tensor]:
        """One reparameterised draw, ``μ + σε + Fz``."""
        gaussian = self.gaussian()
        values = self.constrain(self.split(gaussian.rsample()))
        self._drawn = _Drawn(values, self.split(gaussian.loc), self.split(gaussian.variance))
        return values

    @torch.no_grad()
    def sample(self, num_samples: int) -> dict[str, Tensor]:
        """Draws ``{site: [num_samples, *site shape]}``, all sites in one product."""
        return self.constrain(self.split(self.gaussian().rsample(torch.Size([num_samples]))))

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Joint log density of draws ``{site: [K, *site shape]}`` on the sites' own supports, shape ``[K]``."""
        return joint_log_prob(self, self.gaussian(), draws)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Pyro's view: an auxiliary site for the flat vector, from which each latent site follows."""
        self.announce_parameters()
        return sample_jointly(self, self.gaussian())

    # ---------------------------------------------------------------------------------------- divergence

    def shared_divergence(self) -> Tensor:
        """Minus the entropy of the flat vector; exact."""
        return -self.gaussian().entropy()

    def divergence(self, site: Site, value: Tensor, prior: dist.Distribution) -> tuple[Tensor, bool]:
        r"""The site's cross-entropy in unconstrained space, ``E_q[-log p(u)]``.

        With :meth:`shared_divergence` it adds up to KL(q ‖ p). Exact where torch or Pyro registers a KL between
        independent Gaussians on the site's support and the prior, else ``-log p(v) - log |dv/du|`` of the draw.

        Args:
            site: The site.
            value: Its value in this draw.
            prior: Its prior in this run of the model (which may depend on other sites of the draw).

        Returns:
            The prior's batch shape, and whether it is exact.
        """
        drawn = self._drawn
        if drawn is not None and drawn.values[site.name] is value:
            marginals = independent_normal(site, drawn.locs[site.name], drawn.variances[site.name].sqrt())
        else:
            marginals = self.marginals(site)
        with contextlib.suppress(NotImplementedError):
            kl = kl_divergence(marginals, prior)  # type: ignore[arg-type]
            return kl + _entropy(marginals).reshape(*kl.shape, -1).sum(-1), True
        score = prior.log_prob(value)
        if not site.is_real:
            score = score + site.log_jacobian(site.transform.inv(value), value, value.dim() - site.event_dim)
        return -score, False


class _Drawn:
    """The last draw and the marginal moments computed with it.

    One window of the factor per site would make the backward pass write the whole factor's gradient once per site.
    Moments are only used with the very values that they were drawn with, so they belong to the same graph.
    """

    def __init__(self, values: dict[str, Tensor], locs: dict[str, Tensor], variances: dict[str, Tensor]) -> None:
        self.values, self.locs, self.variances = values, locs, variances


def _entropy(marginals: Any) -> Tensor:
    """Entropies of the unconstrained elements."""
    while not isinstance(marginals, dist.Normal):
        marginals = marginals.base_dist
    return marginals.entropy()
