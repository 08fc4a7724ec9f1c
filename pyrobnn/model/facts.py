"""Properties of a guide that generic code needs: sets of sites and numbers, in place of checks for classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Facts"]


@dataclass(frozen=True)
class Facts:
    """Properties of a guide in its present state; some change when it is fitted.

    Attributes:
        sites: Names of its sites.
        density: Sites whose (joint) density can be computed.
        independent: Groups of sites; sites of different groups are independent of each other.
        gaussian: Real-valued sites whose elements are independent Gaussians.
        noise_size: Number of standard normals that ``rsample(noise)`` and draws of training are made from; None if they
            take no noise, as where a point is trained.
        num_points: Number of equally likely points that the distribution consists of, None if there are not finitely
            many.
        num_training_draws: Number of draws that each training step makes, None if ``num_particles`` of the objective
            decides.
        num_components: Number of members of the ensemble that the guide is or has as a part, None if there is none.
        chain_shape: Number of Markov chains and number of draws of each, None if the draws are not from chains.
        is_ready: Whether :meth:`~pyrobnn.guides.Guide.sample` works; False for a guide that is trained as a point
            (Laplace, SWAG) and has not been fitted yet.
        predictor: The predictor that :func:`pyrobnn.predict` uses by default.
    """

    sites: frozenset[str]
    density: frozenset[str] = frozenset()
    independent: tuple[frozenset[str], ...] = ()
    gaussian: frozenset[str] = frozenset()
    noise_size: int | None = None
    num_points: int | None = None
    num_training_draws: int | None = None
    num_components: int | None = None
    chain_shape: tuple[int, int] | None = None
    is_ready: bool = True
    predictor: Literal["weights", "linearized"] = "weights"

    @property
    def has_density(self) -> bool:
        """Whether the density of all sites can be computed."""
        return self.density == self.sites

    def can_marginalize(self, names: Sequence[str]) -> bool:
        """Whether these sites alone have a density: they are a union of independent groups with densities."""
        chosen = frozenset(names)
        groups = [group for group in self.independent if group & chosen]
        return chosen <= self.density and all(group <= chosen for group in groups)

    @classmethod
    def united(cls, parts: Sequence[Facts]) -> Facts:
        """The facts of a product of independent guides: unions of sets, and sums or products of numbers.

        A point beside others adds no noise of its own, so a composite of a Gaussian and a point is made of noise.
        """
        sizes = [part.noise_size for part in parts if part.noise_size is not None or part.num_points != 1]
        points = [part.num_points for part in parts]
        draws = [part.num_training_draws for part in parts if part.num_training_draws is not None]
        components = [part.num_components for part in parts if part.num_components is not None]
        counts = [count for count in points if count is not None]
        return cls(
            sites=frozenset().union(*(part.sites for part in parts)),
            density=frozenset().union(*(part.density for part in parts)),
            independent=tuple(group for part in parts for group in part.independent),
            gaussian=frozenset().union(*(part.gaussian for part in parts)),
            noise_size=None if None in sizes or not sizes else sum(size for size in sizes if size is not None),
            num_points=math.prod(counts) if len(counts) == len(points) else None,
            num_training_draws=draws[0] if draws else None,
            num_components=components[0] if components else None,
            is_ready=all(part.is_ready for part in parts),
            predictor=parts[0].predictor if len(parts) == 1 else "weights",
        )
