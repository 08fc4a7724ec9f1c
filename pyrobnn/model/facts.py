"""What generic code may ask of a posterior: sets of sites and numbers, not classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Facts"]


@dataclass(frozen=True)
class Facts:
    """Facts of a guide as it is now; some change when it is fitted.

    Attributes:
        sites: Names of its sites.
        density: Sites with a joint density that can be computed.
        independent: Groups of sites; sites of different groups are independent of each other.
        gaussian: Real-valued sites whose elements are independent Gaussians.
        noise_size: How many standard normals make a draw, None if draws are made otherwise.
        num_points: Number of equally likely points that the distribution consists of, None if there are not finitely
            many.
        num_components: Number of members of the part that is an ensemble, None if no part is.
        chain_shape: Number of Markov chains and of draws of each, None if draws are no chains.
        num_training_draws: Number of draws that a training step makes whatever it is requested, None if it makes as
            many as it is requested.
        is_ready: Whether draws of the posterior can be made; False while it is the point that it is trained as.
        predictor: How predictions are made by default.
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
        """Whether all sites have one."""
        return self.density == self.sites

    def can_marginalize(self, names: Sequence[str]) -> bool:
        """Whether these sites by themselves have a density: they are a union of groups with densities."""
        chosen = frozenset(names)
        groups = [group for group in self.independent if group & chosen]
        return chosen <= self.density and all(group <= chosen for group in groups)

    @classmethod
    def united(cls, parts: Sequence[Facts]) -> Facts:
        """The facts of independent parts together: sets unite, numbers add up or become None."""
        sizes = [part.noise_size for part in parts]
        points = [part.num_points for part in parts]
        draws = [part.num_training_draws for part in parts if part.num_training_draws is not None]
        components = [part.num_components for part in parts if part.num_components is not None]
        product: int | None = 1
        for count in points:
            product = None if product is None or count is None else product * count
        return cls(
            sites=frozenset().union(*(part.sites for part in parts)),
            density=frozenset().union(*(part.density for part in parts)),
            independent=tuple(group for part in parts for group in part.independent),
            gaussian=frozenset().union(*(part.gaussian for part in parts)),
            noise_size=None if None in sizes else sum(size for size in sizes if size is not None),
            num_points=product,
            num_training_draws=draws[0] if draws else None,
            num_components=components[0] if components else None,
            is_ready=all(part.is_ready for part in parts),
            predictor=parts[0].predictor if len(parts) == 1 else "weights",
        )
