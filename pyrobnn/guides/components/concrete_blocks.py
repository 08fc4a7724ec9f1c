"""Sites of structure in blocks: those with equally many choices are rows of one matrix, for one operation on all.

A *block* is a window of the guide's flat vector of logits, read as rows ``[R, K]`` (gates: elements ``[R]``), some
rows for each of its sites.
"""

# Pyro declares the attributes of torch distributions on subclasses only.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor

from pyrobnn.distributions.concrete import BinaryConcrete, Concrete, gumbel, logistic, to_interval, to_simplex
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.model.layout import Site
from pyrobnn.model.priors.base import elementwise_support

__all__ = ["Block", "find_blocks", "relaxed_prior", "starting_logits"]

_RELAXED = (Concrete, BinaryConcrete, dist.RelaxedOneHotCategorical, dist.RelaxedBernoulli)


@dataclass(frozen=True)
class Block:
    """Sites with the same number of choices (0: gates), whose logits are contiguous in the flat vector.

    Attributes:
        num_choices: The number K; 0 for gates.
        start: Where the window begins.
        rows: Each site with its rows of the block's matrix ``[R, K]`` (elements of its vector ``[R]``).
    """

    num_choices: int
    start: int
    rows: tuple[tuple[Site, slice], ...]

    @property
    def sites(self) -> list[Site]:
        """The sites in order."""
        return [site for site, _ in self.rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """``[R, K]``, of gates ``[R]``."""
        num_rows = self.rows[-1][1].stop
        return (num_rows, self.num_choices) if self.num_choices else (num_rows,)

    @property
    def stop(self) -> int:
        """Where the window ends."""
        return self.start + math.prod(self.shape)

    def piece(self, flat: Tensor, site: Site) -> Tensor:
        """A site's elements of the flat vector."""
        width = self.num_choices or 1
        rows = next(rows for other, rows in self.rows if other.name == site.name)
        return flat[self.start + rows.start * width : self.start + rows.stop * width]

    def noise(self, like: Tensor, lead: tuple[int, ...]) -> Tensor:
        """Gumbel (of gates logistic) noise ``[*lead, *shape]``."""
        shape = torch.Size((*lead, *self.shape))
        return gumbel(like.detach(), shape) if self.num_choices else logistic(like.detach(), shape)

    def squash(self, scores: Tensor, hard: bool) -> Tensor:
        """Points of the simplex (the unit interval) whose attribute ``relaxed`` holds their logarithms (logits)."""
        return to_simplex(scores, hard) if self.num_choices else to_interval(scores, hard)

    def log_density_of_noise(self, noise: Tensor, temperature: float) -> Tensor:
        """Log density of the draw that the noise makes, row by row, whatever the logits."""
        if not self.num_choices:
            return -noise - 2.0 * F.softplus(-noise) + math.log(temperature)
        width = self.num_choices
        constant = math.lgamma(width) + (width - 1) * math.log(temperature)
        return constant - noise.sum(-1) - width * torch.logsumexp(-noise, -1)


def find_blocks(sites: list[Site]) -> list[Block]:
    """The sites by number of choices.

    Raises:
        ValueError: If a site is no choice on a simplex or the unit interval.
    """
    grouped: dict[int, list[Site]] = {}
    for site in sites:
        grouped.setdefault(_num_choices(site), []).append(site)
    blocks, start = [], 0
    for width, members in grouped.items():
        rows, row = [], 0
        for site in members:
            count = site.shape.numel() // (width or 1)
            rows.append((site, slice(row, row + count)))
            row += count
        blocks.append(Block(width, start, tuple(rows)))
        start = blocks[-1].stop
    return blocks


def _num_choices(site: Site) -> int:
    """The number of choices in each row of a site; 0 for gates."""
    support = elementwise_support(site.prior)
    if support is constraints.simplex:
        return site.shape[-1]
    if support is constraints.unit_interval:
        return 0
    raise ValueError(
        f"site {site.name!r}: ConcreteStructure is for choices (relaxed categorical or Bernoulli priors), but its "
        f"prior is a {type(base_distribution(site.prior)).__name__}; compose guides, as in "
        'Composite(model, [("*structure*", ConcreteStructure), ("*", MAP)]).'
    )


def relaxed_prior(prior: Any) -> Any:
    """The relaxed categorical or Bernoulli distribution that a prior is, else None."""
    prior = base_distribution(prior)
    return prior if isinstance(prior, _RELAXED) else None


def starting_logits(blocks: list[Block], init: Any) -> Tensor:
    """The flat vector of given logits, elsewhere of the priors' own.

    Raises:
        TypeError: If ``init`` is no mapping.
        ValueError: If logits are of another shape, or of no site.
    """
    if init is not None and not isinstance(init, Mapping):
        raise TypeError(f"init: expected starting logits by site, or None, got {type(init).__name__}.")
    given = dict(init or {})
    pieces = []
    for block in blocks:
        for site in block.sites:
            prior = relaxed_prior(site.prior)
            logits = site.prior.sample().new_zeros(()) if prior is None else prior.logits.detach()
            logits = torch.as_tensor(given.pop(site.name, logits.expand(site.shape)))
            if logits.shape != site.shape:
                raise ValueError(
                    f"init: the logits of the site {site.name!r} have shape {tuple(logits.shape)}, expected "
                    f"{tuple(site.shape)}."
                )
            pieces.append(logits.detach().reshape(-1))
    if given:
        raise ValueError(f"init: there is no site {next(iter(given))!r} of structure.")
    return torch.cat(pieces)
