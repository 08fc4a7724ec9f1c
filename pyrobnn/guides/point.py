"""What guides made of points share: they have no entropy to speak of, so the objective scores ``-log p``."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import register_kl

from pyrobnn.guides.base import Guide, Site

__all__ = ["Point", "PointMass"]


class Point(Guide):
    """Base of guides whose draws are points (:class:`~pyrobnn.guides.Map`, ensembles).

    Attributes:
        jacobian: Whether the density in unconstrained space is maximised instead of the sites' own.
        scores_prior: Whether training steps compute the prior's log density beside its gradient. A sampler sets it
            False: nothing reads the value, and the pass over the weights is two per cent of a perceptron's step.
    """

    divergence_name: ClassVar[str] = "-log prior"
    has_density: ClassVar[bool] = False
    jacobian: bool = False
    scores_prior: bool = True

    def divergence(self, site: Site, value: Tensor, prior: dist.Distribution) -> tuple[Tensor, bool]:
        """``-log p(v)``, minus the log Jacobian if asked; no KL exists for a point mass."""
        score = prior.log_prob(value)
        if self.jacobian and not site.is_real:
            score = score + self.log_jacobian(site, site.transform.inv(value), value)
        return -score, True

    def log_jacobian(self, site: Site, unconstrained: Tensor, value: Tensor) -> Tensor:
        """The log Jacobian that ``-log p(v)`` lacks, of the prior's batch shape; zero unless it is asked for."""
        num_batch_dims = value.dim() - site.event_dim
        if not self.jacobian:
            return value.new_zeros(value.shape[:num_batch_dims])
        return site.log_jacobian(unconstrained, value, num_batch_dims)

    def log_prob(self, draws: Any) -> Tensor:
        """Refused: a point mass has no density.

        Raises:
            NotImplementedError: Always.
        """
        kind = type(self).__name__
        raise NotImplementedError(f"{kind} is a point mass: it has no density; use MeanField or MCMC for one.")


class PointMass(dist.Delta):
    """A Delta whose log density (a Jacobian, say) is kept in the KL; Pyro's registered KL of a Delta drops it."""


@register_kl(PointMass, dist.Distribution)
def _kl_point_mass(point: PointMass, prior: Any) -> Tensor:
    return point.log_density - prior.log_prob(point.v)
