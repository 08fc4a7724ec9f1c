"""The divergence of a posterior from the prior, summed over all sites."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrobnn.model.substitution import masked_sum

__all__ = ["Divergence", "PriorTerm", "kl_or_difference", "prior_terms", "refuse_missing"]


class PriorTerm(NamedTuple):
    """The prior of a site as one run of the model applied it.

    Attributes:
        distribution: The prior, given the other sites of the draw.
        scale: Factor of its log density.
        mask: Which of its log densities count; None for all.
    """

    distribution: Any
    scale: float | Tensor = 1.0
    mask: Tensor | bool | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the log density is neither scaled nor masked."""
        return self.mask is None and isinstance(self.scale, float | int) and self.scale == 1.0

    def sum(self, score: Tensor) -> Tensor:
        """The sum of a log density or divergence of the prior's batch shape, under mask and scale."""
        return masked_sum(score, self.mask, self.scale)


def refuse_missing(sites: Iterable[str], priors: Mapping[str, PriorTerm]) -> None:
    """Refuses the divergence of coupled sites of which the model sampled only some.

    Raises:
        ValueError: If a site has no prior: coupled sites have no divergence without each other.
    """
    if missing := [name for name in sites if name not in priors]:
        raise ValueError(f"site {missing[0]!r}: the model did not sample it, but the guide couples it with others.")


def prior_terms(messages: list[Any]) -> dict[str, PriorTerm]:
    """The priors in the messages of a run's latent sites."""
    return {message["name"]: PriorTerm(message["fn"], message["scale"], message["mask"]) for message in messages}


@dataclass(frozen=True)
class Divergence:
    """A divergence from the prior in nats; ``total`` is the sum of ``by_site`` and ``joint``.

    Attributes:
        total: The divergence of all sites.
        joint: Minus the entropy of sites that are coupled, whose entries of ``by_site`` are cross-entropies
            ``-E log p``; zero where all sites are independent.
        exact: Whether it is a closed form, the same for every draw, rather than an estimate from one draw.
        name: What it is: ``"KL"``, or ``"-log prior"`` for point estimates.
        sites: Computes ``by_site``.
    """

    total: Tensor
    joint: Tensor | float = 0.0
    exact: bool = True
    name: str = "KL"
    sites: Callable[[], Mapping[str, Tensor]] = field(default=dict, repr=False)

    @cached_property
    def by_site(self) -> Mapping[str, Tensor]:
        """The terms of single sites, computed at the first access."""
        return self.sites()

    @classmethod
    def of_sites(cls, terms: Mapping[str, Tensor], joint: Tensor | float, exact: bool, name: str = "KL") -> Divergence:
        """The sum of terms by site and a joint part."""
        total = sum(terms.values(), start=joint) if terms else joint
        return cls(torch.as_tensor(total), joint, exact, name, lambda: terms)

    @classmethod
    def beside(
        cls,
        flat: Tensor | float,
        flat_names: Collection[str],
        marginal: Callable[[str], Any],
        priors: Mapping[str, PriorTerm],
        draws: Mapping[str, Tensor],
    ) -> Divergence:
        """The divergence of independent sites, of which those in ``flat_names`` have been summed as ``flat``.

        Args:
            flat: Their sum.
            flat_names: Their names.
            marginal: The posterior of a site.
            priors: Priors of all sites.
            draws: The draw, at which terms without a closed form are estimated.
        """

        def term(name: str) -> tuple[Tensor, bool]:
            found, is_exact = kl_or_difference(marginal(name), priors[name].distribution, draws[name])
            return priors[name].sum(found), is_exact

        others = {name: term(name) for name in priors if name not in flat_names}
        total = sum((value for value, _ in others.values()), start=flat)
        exact = all(is_exact for _, is_exact in others.values())
        return cls(
            torch.as_tensor(total),
            0.0,
            exact,
            sites=lambda: {name: others[name][0] if name in others else term(name)[0] for name in priors},
        )

    def __add__(self, other: Divergence) -> Divergence:
        return Divergence(
            self.total + other.total,
            self.joint + other.joint,
            self.exact and other.exact,
            " and ".join(dict.fromkeys([*self.name.split(" and "), *other.name.split(" and ")])),
            lambda: {**self.by_site, **other.by_site},
        )


def kl_or_difference(posterior: Any, prior: Any, value: Tensor) -> tuple[Tensor, bool]:
    """``KL(posterior ‖ prior)`` where a closed form is registered, else ``log q(v) - log p(v)``; and whether exact."""
    try:
        return kl_divergence(posterior, prior), True
    except NotImplementedError:
        return posterior.log_prob(value) - prior.log_prob(value), False
