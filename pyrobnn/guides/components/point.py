"""The base class of guides that are trained as points: without an entropy, the divergence is ``-log p``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import register_kl

from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.base import Guide
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.layout import Site
from pyrobnn.steps.autograd import AutogradStep
from pyrobnn.steps.base import Step
from pyrobnn.steps.points import PointScore, PointStep

__all__ = ["PointMass", "TrainedAsPoint", "point_mass"]


class TrainedAsPoint(Guide):
    """Base of guides that are trained as one flat point ``loc [d]``, whatever they become afterward.

    Attributes:
        jacobian: Whether the density in unconstrained space is maximized instead of the sites' own.
    """

    jacobian: bool = False

    @property
    def flat_loc(self) -> nn.Parameter:
        """The flat vector, read past Pyro's attribute hooks."""
        return self._parameters["loc"]  # type: ignore[return-value]

    @property
    def facts(self) -> Facts:
        """A point: nothing has a density."""
        names = frozenset(self.layout)
        return Facts(sites=names, independent=tuple(frozenset({name}) for name in self.layout), num_points=1)

    def point(self) -> Draws:
        """The point, with gradients."""
        return Draws(self.layout.constrain(self.layout.split(self.flat_loc)))

    def starting_point(self) -> Draws:
        """The point, where other guides start."""
        return Draws({name: value.detach() for name, value in self.point().items()})

    def point_marginal(self, name: str) -> dist.Distribution:
        """A point mass at the site's value."""
        site = self.layout[name]
        unconstrained = self.flat_loc[site.window].view(site.unconstrained_shape)
        if site.is_real:
            return dist.Delta(unconstrained).to_event(site.event_dim)
        value = site.transform(unconstrained)
        log_jacobian = value.new_zeros(value.shape[: value.dim() - site.event_dim])
        if self.jacobian:
            log_jacobian = site.log_jacobian(unconstrained, value, value.dim() - site.event_dim)
        return PointMass(value, -log_jacobian, event_dim=site.event_dim)

    def point_divergence(self, draws: Mapping[str, Tensor], priors: Mapping[str, PriorTerm]) -> Divergence:
        """``-log p`` of the point, minus the log Jacobian if it is requested."""
        return PointScore(self.layout, jacobian=self.jacobian).divergence(Draws.of(draws), priors)

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """The training step of a point."""
        if not sequential:
            return AutogradStep(self.layout, lambda _: self.point(), self.point_divergence)
        return PointStep(self.layout, self.flat_loc, PointScore(self.layout, jacobian=self.jacobian))


class PointMass(dist.Delta):
    """A Delta whose log density (a Jacobian, say) is kept in the KL; Pyro's registered KL of a Delta drops it."""


@register_kl(PointMass, dist.Distribution)
def _kl_point_mass(point: PointMass, prior: Any) -> Tensor:
    return point.log_density - prior.log_prob(point.v)


def point_mass(site: Site, value: Tensor, log_density: Tensor | None = None) -> dist.Distribution:
    """A site's point mass, with a log density that is not zero if it is given."""
    if log_density is None:
        return dist.Delta(value, event_dim=site.event_dim)
    return PointMass(value, log_density, event_dim=site.event_dim)
