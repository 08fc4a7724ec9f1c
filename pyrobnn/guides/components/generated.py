"""The distribution of generated values, which has no density, and the storage of a generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrobnn.model.layout import Site

__all__ = ["Generated", "Storage", "refuse_density"]


@dataclass(frozen=True)
class Storage:
    """The size of a generator, compared with the draws that it replaces, in numbers stored.

    Attributes:
        num_parameters: Numbers that the generator keeps: weights, and a mean and a scale for each weight it generates.
        num_samples: Draws that it replaces; None if it is not known or they had no end.
        num_latents: Numbers in each draw.
    """

    num_parameters: int
    num_samples: int | None
    num_latents: int

    @property
    def replaced(self) -> int | None:
        """Numbers in the draws that it replaces."""
        return None if self.num_samples is None else self.num_samples * self.num_latents

    @property
    def ratio(self) -> float | None:
        """``num_parameters / replaced``: below 1 the generator is smaller than the draws."""
        return None if self.replaced is None else self.num_parameters / self.replaced

    def __str__(self) -> str:
        own = f"{self.num_parameters:,} numbers"
        if self.ratio is None:
            return own
        return f"{own}, {self.ratio:.3g} of the {self.replaced:,} in {self.num_samples:,} draws"


class Generated(TorchDistribution):
    """What a generator makes of one site: values without a density.

    Args:
        site: The site.
        value: The one value that it has, as a part of a draw of all sites.
        draw: Draws ``[K, *site shape]``, where ``value`` is None.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, site: Site, value: Tensor | None = None, draw: Callable[[int], Tensor] | None = None) -> None:
        self.site, self.value, self.draw = site, value, draw
        event_dim = site.event_dim if value is not None else len(site.shape)
        cut = len(site.shape) - event_dim
        super().__init__(site.shape[:cut], site.shape[cut:], validate_args=False)

    @property
    def support(self) -> Any:
        """That of the site's prior."""
        prior: Any = self.site.prior
        return prior.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Generated:
        """Itself; plates of the site are part of its shape already."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(f"site {self.site.name!r}: its generated value cannot be expanded to {batch_shape}.")
        return self

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The value; or fresh draws."""
        if self.value is not None:
            return self.value.expand(torch.Size(sample_shape) + self.value.shape)
        assert self.draw is not None
        shape = torch.Size(sample_shape)
        return self.draw(shape.numel()).view(*shape, *self.site.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Refused: there is none.

        Raises:
            NotImplementedError: Always.
        """
        refuse_density()


def refuse_density() -> NoReturn:
    """Says that there is no density.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(
        "Generator is an implicit distribution: its draws have no density that could be computed, so it has no log "
        "density, KL or ELBO. Train it with pyrobnn.distill; use MeanField or LowRankNormal for a density."
    )
