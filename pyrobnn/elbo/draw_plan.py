"""What a step's estimators make of a guide: which values the model is run with, and what their divergence is."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import pyro.distributions as dist
from torch import Tensor

from pyrobnn.estimators import Estimator, GaussianWeight, by_site
from pyrobnn.estimators.path_derivative import path_log_density
from pyrobnn.guides.base import Guide, Site

__all__ = ["DrawPlan"]


@dataclass(frozen=True)
class DrawPlan:
    """One step's way of drawing.

    Attributes:
        layerwise: Estimators by site, for the layers that draw.
        groups: Parts the batch is split into, one draw each.
        path_derivative: Whether the KL is a Monte Carlo one without the score of q.
    """

    layerwise: dict[str, Estimator] = field(default_factory=dict)
    groups: int = 1
    path_derivative: bool = False

    @classmethod
    def of(cls, rules: list[tuple[str, Estimator]], guide: Guide) -> DrawPlan:
        """The plan for a guide.

        Raises:
            TypeError: If an estimator needs independent Gaussians, or a density, and the guide has none.
        """
        if not rules:
            return _SHARED
        first = rules[0][1]
        if first.groups > 1 and not hasattr(guide, "write_gaussians"):
            return cls(groups=first.groups)
        if first.path_derivative:
            if not guide.has_density or guide.shared_divergence() != 0.0:
                raise TypeError(
                    f"estimator: {first.name!r} needs site by site densities; {type(guide).__name__} has none."
                )
            return cls(path_derivative=True)
        chosen = _layerwise(tuple(rules), tuple(guide.sites))
        if chosen and not hasattr(guide, "write_gaussians"):
            raise TypeError(
                f"estimator: {next(iter(chosen.values())).name!r} draws at the layers, which needs independent "
                f"Gaussian weights (MeanField); {type(guide).__name__} has none. 'per_group' works with every guide."
            )
        return cls(layerwise=chosen)

    def write(self, guide: Guide) -> tuple[dict[str, Tensor], Tensor | float | None]:
        """Values for one run, and the divergence already taken on flat vectors (None: gradients go by autograd)."""
        if self.layerwise:
            return guide.write_gaussians(self.layerwise)
        if self.path_derivative or not hasattr(guide, "write_draw"):
            return guide.draw(), None
        return guide.write_draw()

    def draw(self, guide: Guide) -> dict[str, Tensor]:
        """Values for one run, differentiable with respect to the guide's parameters."""
        if not self.layerwise:
            return guide.draw()
        chosen: dict[str, Tensor] = {
            name: GaussianWeight.of(loc, scale, self.layerwise[name])
            for name, (loc, scale) in guide.gaussians().items()
            if name in self.layerwise
        }
        return chosen if len(chosen) == len(guide.sites) else guide.draw() | chosen

    def divergence(self, guide: Guide, site: Site, value: Tensor, prior: dist.Distribution) -> tuple[Tensor, bool]:
        """The site's KL, as the guide has it or without the score of q."""
        if not self.path_derivative:
            return guide.divergence(site, value, prior)
        return path_log_density(guide.factor(site), value) - prior.log_prob(value), False


_SHARED = DrawPlan()


@lru_cache(maxsize=16)  # patterns are matched once, not in every step
def _layerwise(rules: tuple[tuple[str, Estimator], ...], sites: tuple[str, ...]) -> dict[str, Estimator]:
    """The estimators that draw at layers, by site."""
    return {name: e for name, e in by_site(list(rules), sites).items() if e.handles}
